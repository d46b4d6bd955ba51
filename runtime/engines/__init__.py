"""Engines behind one small interface, whose nouns are offered here.

Three words that lie close together:

- A **lane** is what images, locks and artifacts belong to: `vllm`, `trt` or `cpu` (`artifact.LaneName`, defined in
  `pipeline.lanes`). `INFERENCE_ENGINE` names a lane: that variable is older than the word.
- An **engine** is the class here that loads the chat model, by the name that the metadata has: `vllm` (lanes `vllm` and
  `cpu`), `trt` or `trt-pytorch` (lane `trt`). What TensorRT-LLM compiles, `rank0.engine`, is a **compiled engine**.
- A **backend** is which half of TensorRT-LLM runs the model: `engine` (a compiled engine) or `pytorch` (`TRT_BACKEND`).

The pipeline validates with the same classes that serve. Nothing outside this package imports vLLM or TensorRT-LLM, and
those imports happen inside `start`, so that importing `runtime` stays cheap. May import `artifact` and `host`.
"""

from runtime.engines.interface import (
    Delta,
    Engine,
    EngineDeadError,
    EngineOptionError,
    EngineOptions,
    EngineVersionError,
    Generates,
    Sampling,
    StartMark,
    TokenScore,
    apart,
    continues,
)
from runtime.engines.loaders import create, finds_cache, for_model, places_of, preload, sharing_of
from runtime.engines.places import Load, Places

__all__ = [
    "Delta",
    "Engine",
    "EngineDeadError",
    "EngineOptionError",
    "EngineOptions",
    "EngineVersionError",
    "Generates",
    "Load",
    "Places",
    "Sampling",
    "StartMark",
    "TokenScore",
    "apart",
    "continues",
    "create",
    "finds_cache",
    "for_model",
    "places_of",
    "preload",
    "sharing_of",
]
