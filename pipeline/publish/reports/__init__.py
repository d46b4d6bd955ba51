"""What a person reads of a plan before the work, and of an artifact after it.

May import `validate` and below.
"""
