"""The command line's options: one object each, and what they are called and say; and how commands end.

May import `plan` and below.
"""
