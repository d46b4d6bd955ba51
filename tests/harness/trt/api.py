"""The recorded interface of TensorRT-LLM: signatures to bind calls against."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

API = json.loads((Path(__file__).parents[2] / "data/trtllm_api.json").read_bytes())
VERSION = "1.2.1"


def entry(name: str) -> dict[str, Any]:
    """Return what was recorded of a callable or a model."""
    return API["callables"][name]


def parameters(name: str) -> list[Mapping[str, Any]]:
    """Return the parameters of a callable, or a model's fields with those that it inherits."""
    found = entry(name)
    own = found.get("params") or found.get("fields") or []
    names = {parameter["name"] for parameter in own}
    base = f"tensorrt_llm.llmapi.{found['inherits']}" if found.get("inherits") else None
    inherited = [parameter for parameter in (parameters(base) if base else []) if parameter["name"] not in names]
    return [*inherited, *own]


def signature(name: str) -> inspect.Signature:
    """Return the recorded signature, without `self`."""
    made = []
    for parameter in parameters(name):
        kind = inspect._ParameterKind[parameter["kind"]]
        variable = kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        default = inspect.Parameter.empty if parameter.get("required") or variable else parameter.get("default")
        made.append(inspect.Parameter(parameter["name"], kind, default=default))
    return inspect.Signature(sorted(made, key=lambda parameter: parameter.kind))


def bind(name: str, arguments: Iterable[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Bind a call to the recorded signature; a TypeError says what does not fit."""
    try:
        bound = signature(name).bind(*arguments, **keywords)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    bound.apply_defaults()
    return dict(bound.arguments)


def model(name: str) -> type:
    """Make a class whose constructor takes the recorded fields and nothing else."""

    def init(self: Any, *arguments: Any, **keywords: Any) -> None:
        self.__dict__.update(bind(name, arguments, keywords))

    return type(name.rpartition(".")[2], (), {"__init__": init})
