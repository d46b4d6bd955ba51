"""vLLM behind the `Engine` interface, on GPUs and on its CPU build.

`core` and `worker` are imported inside vLLM's own processes. May import what `engines` may.
"""
