"""The argument models that the lane uses."""

from tensorrt_llm._api import model

KvCacheConfig = model("tensorrt_llm.llmapi.KvCacheConfig")

__all__ = ["KvCacheConfig"]
