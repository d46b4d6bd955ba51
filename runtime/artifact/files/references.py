"""What an artifact's own files name besides: loaders follow such names, and they must not lead out of it.

The list of a model's shards is read as paths; an adapter or a speculator names another model, which is loaded in the
place of this one; a kernel for attention is fetched by name, and run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping

from runtime.artifact.files.paths import path_problem

INDEX = ".index.json"
CONFIG, TOKENIZER, ADAPTER = "config.json", "tokenizer_config.json", "adapter_config.json"
# Fields of transformers' that name a kernel on the hub where they hold more than a word.
KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def names_others(path: str) -> bool:
    """Whether a file of an artifact may name others that are loaded with it."""
    name = path.rpartition("/")[2].casefold()
    return name in (CONFIG, TOKENIZER, ADAPTER) or name.endswith(INDEX)


def reference_problem(path: str, content: bytes, listed: Collection[str]) -> str | None:
    """What a file names that is not in the artifact; none where all is.

    Args:
        path: of a file that may name others.
        content: what stands in it.
        listed: paths of all the artifact's files.
    """
    name = path.rpartition("/")[2].casefold()
    if name == ADAPTER:
        return "an adapter, which names the model that is loaded"
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None  # whoever loads it says what is wrong with it
    if not isinstance(document, Mapping):
        return None
    if name.endswith(INDEX):
        return next(_not_listed(path, document.get("weight_map"), listed), None)
    if name == TOKENIZER:
        names = document.get("fast_tokenizer_files")
        leading = [str(one) for one in names if path_problem(str(one))] if isinstance(names, list) else []
        return f"the file {leading[0]}, which leads out of it" if leading else None
    return next(_elsewhere(document), None)


def _not_listed(path: str, shards: object, listed: Collection[str]) -> Iterator[str]:
    place = path.rpartition("/")[0]
    for shard in dict.fromkeys(map(str, shards.values())) if isinstance(shards, Mapping) else ():
        if (f"{place}/{shard}" if place else shard) not in listed:
            yield f"the file {shard}, which is not one of its files"


def _elsewhere(config: Mapping[str, object]) -> Iterator[str]:
    if config.get("speculators_config") is not None:
        yield "another model, by speculators_config"
    for field in KERNELS:
        if "/" in str(config.get(field)):
            yield f"code on the hub, by {field}"
    for inner in config.values():
        if isinstance(inner, Mapping):
            yield from _elsewhere(inner)
