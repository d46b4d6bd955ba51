"""Proving: the runtime's own engine loads the artifact, and every figure is held against its bound.

May import `plan` and below.
"""
