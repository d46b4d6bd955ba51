"""The checks of an artifact: what is in it, what proves it, how many GPUs share it, whether it fits this machine.

`runtime/artifact/verify.py` runs them in their order. May import `artifact` and `host`.
"""
