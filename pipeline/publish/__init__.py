"""Publishing: what an artifact says of itself, and how it is signed and pushed.

May import `validate` and below.
"""
