"""Marks that only the template may write, learned from it, and broken up in what a client writes.

May import `text` and below.
"""
