"""What a server does beside talking: it loads, watches, keeps sessions, takes new keys. May import what `server` may.

`loader` makes models of an artifact, `served` is what they are called, `engine_watch` and `classifier_probe` ask after
them, `session_keeping` sets up what is kept between turns, `principals` is who talks and what each has of the server.
"""
