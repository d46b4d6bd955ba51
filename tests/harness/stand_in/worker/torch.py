"""A stand-in for PyTorch, as far as the worker needs it before TensorRT-LLM takes over."""

import os


def manual_seed(seed: int) -> None:
    assert isinstance(seed, int)


def zeros(*size: int, device: str) -> list[int]:
    assert device == "cuda:0"
    if os.environ.get("STAND_IN_QUANTIZE") == "no gpu":
        raise RuntimeError("CUDA error: initialization error")
    return [0] * size[0]
