"""A stand-in for TensorRT-LLM 1.2 that enforces its signatures.

It is made from `tests/data/trtllm_api.json`: every call is bound against the recorded signature, and what that does
not know is refused as TensorRT-LLM refuses it. Its model is arithmetic: the token after `t` is `t + 1`. Tests alone
put this folder on `sys.path`.
"""

from tensorrt_llm._llm import TorchLLM as LLM
from tensorrt_llm._sampling import SamplingParams
from tests.harness.trt.api import VERSION as __version__

__all__ = ["LLM", "SamplingParams", "__version__"]
