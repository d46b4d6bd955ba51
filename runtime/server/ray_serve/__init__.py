"""The same server as replicas of Ray Serve, for whom Ray places and heals. May import what `server` may.

`application` says what Ray is to run, from the settings; `replica` is one server in Ray's hands; `scaling` decides how
many there are; `insides` is all of Ray that is not public. Ray is an extra of its own, and imported here alone.
"""
