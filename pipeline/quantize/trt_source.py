"""A model as the quantizers may read it, that of TensorRT-LLM's lane in older words."""

from __future__ import annotations

import json
from pathlib import Path

from runtime.artifact.generations import MODEL, TOKENIZER, write_for_older

# What of a model names the code to run for it.
CODE_KEY = "auto_map"


def link_model(model: Path, folder: Path) -> None:
    """Make a folder of links to a model's files: without its code, and in the words of the lane's transformers.

    Raises:
        ArtifactError: that transformers has no words for it.
    """
    link_files(model, folder)
    write_for_older(folder)


def link_files(model: Path, folder: Path) -> None:
    """Make a folder of links to a model's files, without its code."""
    folder.mkdir()
    for path in sorted(model.resolve().iterdir()):
        if path.suffix != ".py":
            _link(path, folder / path.name)


def _link(path: Path, link: Path) -> None:
    """Link to a file of the model; one that names code to run is written anew without it."""
    document = json.loads(path.read_bytes()) if path.name in {MODEL, TOKENIZER} else {}
    if CODE_KEY in document:
        del document[CODE_KEY]
        link.write_text(json.dumps(document), encoding="utf-8")
    else:
        link.symlink_to(path)
