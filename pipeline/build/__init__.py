"""Building: one module a lane writes what the runtime will load, compiled ahead of time where the engine compiles.

May import `plan` and below.
"""
