"""Engines behind one small interface, whose nouns are offered here.

The pipeline validates with the same classes that serve. Nothing outside this package imports vLLM or TensorRT-LLM, and
those imports happen inside `start`, so that importing `runtime` stays cheap. May import `artifact` and `host`.
"""

from runtime.engines.interface import (
    Delta,
    Engine,
    EngineDeadError,
    EngineOptionError,
    EngineOptions,
    Load,
    Sampling,
    TokenScore,
    create,
    for_model,
    preload,
)

__all__ = [
    "Delta",
    "Engine",
    "EngineDeadError",
    "EngineOptionError",
    "EngineOptions",
    "Load",
    "Sampling",
    "TokenScore",
    "create",
    "for_model",
    "preload",
]
