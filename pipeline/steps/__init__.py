"""Steps: what a run hands to a stage, and what it makes of the result; the runner that all commands share.

May import `publish`, `tuning`, `validate` and below.
"""
