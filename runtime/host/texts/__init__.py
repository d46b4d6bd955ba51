"""Texts: what is kept of them for a while, and how many words are found in one.

May import `defaults`.
"""
