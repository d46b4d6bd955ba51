"""The wire protocol: frames, messages and how they are read.

Knows neither sockets nor asyncio, so that the rules are tested without them. May import `text` and below.
"""
