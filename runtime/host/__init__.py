"""What the process stands on: the machine and its GPUs, logs, tasks, time-outs and rate limits.

Imports nothing of ours outside this room.
"""
