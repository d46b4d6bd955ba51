"""Sessions beyond this process: what is written of them, how it is sealed, the store that keeps it, and who writes it.

May import `deployment` and below.
"""
