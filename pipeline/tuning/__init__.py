"""Tuning: options of the engine that are tried on this GPU with this model, and the best that are proven.

May import `validate` and below.
"""
