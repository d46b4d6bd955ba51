"""The page at `/` that talks to the server it comes from. May import what `server` may; it needs Starlette alone.

Three files that a browser reads as they are, and the routes that serve them (`pages`). The page knows
`docs/protocol.md` and nothing else of the server.
"""
