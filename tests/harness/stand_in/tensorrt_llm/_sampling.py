"""`SamplingParams` with the checks that TensorRT-LLM makes."""

from __future__ import annotations

from typing import Any

from tests.harness.trt.api import bind


class SamplingParams:
    """The sampling parameters, checked as TensorRT-LLM checks them."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.__dict__.update(bind("SamplingParams", arguments, keywords))
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"require 0 <= top_p <= 1, got top_p={self.top_p}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"require top_k >= 0, got top_k={self.top_k}")
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"require temperature >= 0, got temperature={self.temperature}")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of ({self.best_of}) cannot be less than n ({self.n})")
