"""The page at `/` that talks to the server it comes from (`PLAYGROUND`).

Three files that a browser reads as they are, and the routes that serve them. Imports Starlette alone; the page knows
`docs/protocol.md` and nothing else of the server.
"""
