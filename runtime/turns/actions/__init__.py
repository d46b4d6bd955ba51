"""What a connection's messages do: begin a turn, prepare a reply, cut one, set a persona, prefill; and their refusals.

May import `deployment` and below.
"""
