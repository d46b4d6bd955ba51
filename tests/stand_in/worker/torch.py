"""What the quantizer's worker needs of PyTorch before TensorRT-LLM takes over, without its import time or a GPU."""


def manual_seed(seed: int) -> None:
    assert isinstance(seed, int)


def zeros(*size: int, device: str) -> list[int]:
    assert device == "cuda:0"
    return [0] * size[0]
