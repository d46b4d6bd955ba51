"""What the process stands on: the machine and its GPUs, logs, tasks, time-outs and rate limits.

May import `defaults` alone.
"""
