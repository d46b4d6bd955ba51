"""TensorRT-LLM behind the `Engine` interface: compiled engines and its PyTorch backend.

May import what `engines` may.
"""
