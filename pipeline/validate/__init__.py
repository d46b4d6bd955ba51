"""Validation: the runtime's own engine loads the artifact, and every figure is compared with its bound.

May import `plan` and below.
"""
