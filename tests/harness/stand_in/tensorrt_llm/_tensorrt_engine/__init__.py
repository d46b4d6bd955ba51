"""The backend that loads compiled engines."""

from tensorrt_llm._llm import TrtLLM as LLM

__all__ = ["LLM"]
