"""A source model on the hub: small files in git, weights and tokenizer in large-file storage."""

from __future__ import annotations

from pathlib import Path

from tests.harness.trt.lane import model
from tests.hub.artifacts import random_bytes
from tests.hub.server import Hub
from tests.hub.store import Commit, Repository, Stored

LARGE = ("model.safetensors", "tokenizer.json")


def safetensors(size: int) -> bytes:
    """A file whose header says that it holds one tensor of so many bytes."""
    header = b'{"weight": {"dtype": "U8", "shape": [%d], "data_offsets": [0, %d]}}' % (size, size)
    return len(header).to_bytes(8, "little") + header + random_bytes("weights", size)


def publish(
    hub: Hub, name: str, folder: Path, *, weights: int = 300_000, private: bool = False, **config: object
) -> Commit:
    """Put a small model that any lane can plan on the hub. `folder` gets the same files."""
    model(folder, **config)
    (folder / "model.safetensors").write_bytes(safetensors(weights))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "picture.png").write_bytes(random_bytes("picture", 1000))  # nobody needs it to run the model
    repository = hub.repositories.setdefault(name, Repository(name, private=private))
    files = {path.name: Stored(path.read_bytes(), lfs=path.name in LARGE) for path in folder.iterdir()}
    return repository.commit("publish", files)
