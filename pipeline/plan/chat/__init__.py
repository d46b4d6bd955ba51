"""The chat model's plan: method, groups and what stays in float, calibration, limits; and TensorRT-LLM's own.

May import `plan`, `source` and below.
"""
