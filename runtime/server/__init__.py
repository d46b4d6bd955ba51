"""Sockets, HTTP endpoints and the process around them; the one room that knows Starlette and uvicorn.

May import `turns` and below.
"""
