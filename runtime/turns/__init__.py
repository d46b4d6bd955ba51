"""Sessions and turns: what a client's messages do, in their order. Knows no socket.

May import `deployment` and below.
"""
