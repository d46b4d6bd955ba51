"""What is kept of a conversation between its turns: history, persona, sampling; who has it, and for how long.

May import `deployment` and below.
"""
