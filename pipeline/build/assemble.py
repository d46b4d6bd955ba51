"""The build stage's work: the chat model by its lane's builder, and the classifier beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.build import awq
from pipeline.build.layout import COMPILE_CACHE, copy_classifier
from runtime.artifact import TOOL_FOLDER
from runtime.artifact.labels import ENGINES_FOLDER

if TYPE_CHECKING:
    from pipeline.progress import Progress


def assemble(
    models: Mapping[str, Path],
    out: Path,
    *,
    build: Callable[[Path, Path], None] | None,
    described: Mapping[str, Any] | None,
    progress: Progress,
) -> Mapping[str, Any]:
    """Fill the artifact's folder with everything but its metadata.

    Args:
        models: folders of the models, `chat` and `tool`, as far as there are any.
        out: an empty folder.
        build: the lane's builder, from the chat model's folder into `out`; none without a chat model.
        described: the content of `awq_metadata.json`, where one belongs into the artifact.
        progress: told of each step.

    Returns:
        where the chat model's compiled parts lie in it: fields of `ChatModel`.

    Raises:
        StageError: the builder failed.
    """
    if build:
        build(models["chat"], out)
    if "tool" in models:
        progress.step("laying out the classifier")
        copy_classifier(models["tool"], out / TOOL_FOLDER)
    if described:
        (out / awq.NAME).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    engine = next((out / ENGINES_FOLDER).glob("*"), None)
    return {
        "compile_cache": COMPILE_CACHE if (out / COMPILE_CACHE).is_dir() else None,
        "engine_path": engine.relative_to(out).as_posix() if engine else None,
    }
