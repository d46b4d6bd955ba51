"""Language to tokens and back: chat templates, prompts within their budgets, and text that is fit to be spoken.

May import `engines` and below.
"""
