"""Which engine loads a model, and with which options: those that were asked for, then the artifact's, then tuned ones.

An engine is imported when it is asked for, so that importing `runtime` stays cheap.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from runtime.artifact import ArtifactError, BuildMetadata, ChatModel, Limits
from runtime.artifact.checks.sharing import Sharing
from runtime.defaults import first_set
from runtime.engines.imports import looking_once
from runtime.engines.interface import Engine, EngineOptions
from runtime.engines.places import Places
from runtime.engines.tuned import key_of, tuned
from runtime.host import machine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loader:
    """How one engine is made, without importing it before.

    Attributes:
        of_artifact: on an artifact.
        of_folder: on a plain Hugging Face folder.
        preload: imports what either will need.
    """

    of_artifact: Callable[[Path, ChatModel, EngineOptions], Engine]
    of_folder: Callable[[Path, EngineOptions], Engine]
    preload: Callable[[EngineOptions], None] = lambda _: None


def _vllm_of_artifact(folder: Path, chat: ChatModel, options: EngineOptions) -> Engine:
    from runtime.engines.vllm.engine import VllmEngine

    cache = folder / chat.compile_cache if chat.compile_cache and finds_cache(chat, options) else None
    return VllmEngine(folder, options, compile_cache=cache)


def _vllm_of_folder(folder: Path, options: EngineOptions) -> Engine:
    from runtime.engines.vllm.engine import VllmEngine

    return VllmEngine(folder, options)


def _preload_vllm(options: EngineOptions) -> None:
    from runtime.engines.vllm.arguments import preload as preload_vllm

    preload_vllm(options)


def _trt_of_artifact(
    backend: Literal["engine", "pytorch"], folder: Path, chat: ChatModel, options: EngineOptions
) -> Engine:
    from runtime.engines.trt.engine import TrtEngine

    model = folder / chat.engine_path if chat.engine_path else folder
    return TrtEngine(model, options, tokenizer=folder, backend=backend)


def _trt_of_folder(folder: Path, options: EngineOptions) -> Engine:
    """TensorRT-LLM loads such folders with its PyTorch backend, whatever the artifact has."""
    from runtime.engines.trt.engine import TrtEngine

    return TrtEngine(folder, options, tokenizer=folder, backend="pytorch")


# By the name of the engine in the metadata.
LOADERS = {
    "vllm": Loader(_vllm_of_artifact, _vllm_of_folder, _preload_vllm),
    "trt": Loader(partial(_trt_of_artifact, "engine"), _trt_of_folder),
    "trt-pytorch": Loader(partial(_trt_of_artifact, "pytorch"), _trt_of_folder),
}


def create(folder: Path, metadata: BuildMetadata, options: EngineOptions) -> Engine:
    """The engine that an artifact names, not started yet. Limits that the options leave open are the artifact's.

    Raises:
        ArtifactError: the artifact holds no chat model, or names an engine that this runtime does not have.
    """
    chat = metadata.chat
    if chat is None:
        raise ArtifactError(f"{folder}: expected a chat model, found a tool-only artifact; set DEPLOY_MODE=tool")
    options = _as_tuned(_limited(options, chat.limits), chat)
    if loader := LOADERS.get(metadata.engine):
        return loader.of_artifact(folder, chat, options)
    known = ", ".join(LOADERS)
    raise ArtifactError(
        f"{folder}: expected one of the engines {known}, found {metadata.engine!r}; use the runtime image of its lane"
    )


def preload(metadata: BuildMetadata, options: EngineOptions) -> None:
    """Import what loading the artifact will need, which takes seconds. Reads nothing of it but its metadata.

    What cannot be imported is told by the engine's `start`.
    """
    if metadata.chat is not None and (loader := LOADERS.get(metadata.engine)):
        with looking_once():
            loader.preload(_limited(options, metadata.chat.limits))


def places_of(metadata: BuildMetadata, options: EngineOptions) -> Places:
    """What an artifact's engine runs at once."""
    limits = metadata.chat.limits if metadata.chat is not None else None
    return Places(_limited(options, limits).max_num_seqs if limits is not None else options.max_num_seqs)


def sharing_of(options: EngineOptions) -> Sharing:
    """How many GPUs the options want to share the model."""
    return Sharing(options.tensor_parallel_size, options.pipeline_parallel_size)


def finds_cache(chat: ChatModel, options: EngineOptions) -> bool:
    """Whether the engine would find what the artifact's compile cache has, if anything: it is for as many GPUs."""
    return chat.compile_cache is None or sharing_of(options).of(chat.limits) == chat.limits


def _as_tuned(options: EngineOptions, chat: ChatModel) -> EngineOptions:
    """The options with those that were measured for this machine, if any; what was taken and what not is logged."""
    if chat.engine_options is None:
        return options
    found = tuned(options, chat, key_of(machine.describe(), sharing_of(options).of(chat.limits)))
    if found.used:
        log.info("engine options as tuned for %s: %s", chat.engine_options.goal, ", ".join(found.used))
    for reason in found.left:
        log.warning("tuned engine options that are not used: %s", reason)
    return found.options


def _limited(options: EngineOptions, limits: Limits) -> EngineOptions:
    shared = sharing_of(options).of(limits)
    return replace(
        options,
        max_num_seqs=first_set(options.max_num_seqs, default=limits.max_batch_size),
        max_model_len=first_set(options.max_model_len, default=limits.max_model_len),
        tensor_parallel_size=shared.tensor_parallel_size,
        pipeline_parallel_size=shared.pipeline_parallel_size,
    )


def for_model(engine: str, folder: Path, options: EngineOptions) -> Engine:
    """An engine on a plain Hugging Face folder, not started yet: what the pipeline measures the float model with.

    Args:
        engine: what loads the artifact that it is compared with.

    Raises:
        KeyError: there is no such engine.
    """
    return LOADERS[engine].of_folder(folder, options)
