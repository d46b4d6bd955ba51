"""What a peer meets before it has shown a key: bounds on bytes, time, sockets and frames. May import what `server` may.

`sockets` knows every open socket and ends those that take too long. `heads` reads the head of a request within bounds.
`http` and `websocket` are uvicorn's protocols with these bounds around them.
"""
