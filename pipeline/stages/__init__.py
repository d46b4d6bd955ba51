"""Stages: work that is done once for each set of inputs, and installed atomically.

May import `lanes` and the ground modules.
"""
