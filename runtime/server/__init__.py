"""Sockets, HTTP doors and the process around them; the one room that knows Starlette and uvicorn.

May import every other room of `runtime`.
"""
