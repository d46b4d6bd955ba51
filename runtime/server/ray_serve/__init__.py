"""Replicas of Ray Serve, each of them the same server as a process of its own. May import what `server` may.

`application` says what Ray is to run, from the settings; `replica` is one server in Ray's hands; `scaling` decides how
many there are; `insides` is all of Ray that is not public. Ray is an extra of its own, and imported here alone.
"""
