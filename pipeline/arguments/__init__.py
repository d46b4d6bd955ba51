"""The command line's options: one object each, and what they are called and say.

May import `plan` and below.
"""
