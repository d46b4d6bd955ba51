"""What an artifact says of itself, and how it is signed and published.

May import `validate` and below.
"""
