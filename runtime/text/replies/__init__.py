"""Replies on their way from the engine to the client: what of them is speech, where they end, and how they are made.

May import `text` and below.
"""
