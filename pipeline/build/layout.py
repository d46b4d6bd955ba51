"""The files of a model that go into an artifact."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from pipeline.source import CONTENT_SUFFIXES, held_twice
from pipeline.stages.stage import StageError
from runtime.artifact.files.paths import UNLISTED_NAMES

COMPILE_CACHE = "compile_cache"

# What belongs to a checkpoint in another format, or to the source's page rather than to the model.
LEFT_OUT_NAMES = frozenset({"README.md", "recipe.yaml", ".gitattributes"})
_LEFT_OUT = frozenset(name.casefold() for name in (*LEFT_OUT_NAMES, *UNLISTED_NAMES))
OTHER_WEIGHTS = (".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def copy_model(model_dir: Path, out: Path) -> None:
    """Copy those files of a Hugging Face folder that belong into an artifact.

    They are copied, not linked: an artifact that is changed in place must not change the finished stage it came from.

    Raises:
        StageError: no config.json, or no weights in safetensors.
    """
    names = sorted(path.name for path in model_dir.iterdir() if path.is_file()) if model_dir.is_dir() else []
    for expected, found in (
        ("config.json", "config.json" in names),
        ("*.safetensors", any(name.endswith(".safetensors") for name in names)),
    ):
        if not found:
            raise StageError("build", f"expected {expected}, found none", model_dir, "choose a Hugging Face folder")
    twice = held_twice(model_dir)
    for name in names:
        if is_left_out(name) or name in twice:
            continue
        # What no loader asks for may be missing.
        with contextlib.nullcontext() if name.endswith(CONTENT_SUFFIXES) else contextlib.suppress(OSError):
            shutil.copyfile(model_dir / name, out / name)
    copy_templates(model_dir, out)


def is_left_out(name: str) -> bool:
    """Tell whether a file of a model's folder stays there: another format, the source's page, or an unfinished file."""
    return name.casefold() in _LEFT_OUT or name.startswith(".") or name.endswith((*OTHER_WEIGHTS, ".partial"))


def copy_templates(model_dir: Path, out: Path) -> None:
    """Copy the chat templates that lie in a folder of their own, where there are such."""
    if (templates := model_dir / "additional_chat_templates").is_dir():
        shutil.copytree(templates, out / templates.name, dirs_exist_ok=True)


def copy_classifier(model: Path, out: Path) -> None:
    """Copy the classifier's files; its card is the source's, not the artifact's."""
    out.mkdir()
    twice = held_twice(model)
    for path in sorted(model.iterdir()):
        if path.name in twice:
            continue
        if path.is_file() and path.name.endswith(CONTENT_SUFFIXES) and not path.name.startswith("."):
            shutil.copyfile(path, out / path.name)
