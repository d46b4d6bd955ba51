"""The argument models that the lane uses."""

from tests.harness.trt.api import model

KvCacheConfig = model("tensorrt_llm.llmapi.KvCacheConfig")

__all__ = ["KvCacheConfig"]
