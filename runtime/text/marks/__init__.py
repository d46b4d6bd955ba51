"""Marks that only the template may write and words that switch thought, broken up in what a client writes.

May import `text` and below.
"""
