"""A classifier that lacks weights is refused: transformers would make them up, others after every start."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from runtime.deployment.classifier import ToolClassifier
from runtime.deployment.classifier.model import SequenceClassifier
from tests.harness.models.classifiers import checkpoint

WEIGHTS = "model.safetensors"


def load(folder: Path) -> SequenceClassifier:
    return SequenceClassifier(folder, 64, (1,), "cpu", None, 1)


@pytest.mark.parametrize("family", ["bert", "modernbert", "longformer"])
def test_each_weight_is_missed(family: str, tmp_path: Path) -> None:
    stored = load_file(checkpoint(family, tmp_path) / WEIGHTS)
    load(tmp_path)
    for gone in stored:
        save_file({name: w for name, w in stored.items() if name != gone}, tmp_path / WEIGHTS, {"format": "pt"})
        with pytest.raises(ValueError, match=f"expected all weights of .*, found none for {gone}; save it whole"):
            load(tmp_path)


async def test_a_classifier_of_other_names_does_not_start(tmp_path: Path) -> None:
    stored = load_file(checkpoint("bert", tmp_path) / WEIGHTS)
    save_file({f"foo.{name}": w for name, w in stored.items()}, tmp_path / WEIGHTS, {"format": "pt"})
    running = ToolClassifier(tmp_path, threshold=0.5, max_tokens=64)
    with pytest.raises(ValueError, match=r"found none for .* and .* others") as refused:
        await running.start()
    assert "\n" not in str(refused.value)
    await running.shutdown()


def test_what_lies_beside_the_weights_does_not_count(tmp_path: Path) -> None:
    """A table of positions, as files of old have it, and the head of another task."""
    import torch

    stored = load_file(checkpoint("bert", tmp_path / "bert") / WEIGHTS)
    shutil.copytree(tmp_path / "bert", tmp_path / "more")
    more = {"bert.embeddings.position_ids": torch.arange(64)[None], "cls.predictions.bias": torch.zeros(8)}
    save_file(stored | more, tmp_path / "more" / WEIGHTS, {"format": "pt"})
    load(tmp_path / "more")
