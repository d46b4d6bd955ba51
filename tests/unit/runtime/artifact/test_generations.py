"""Configs of transformers 5 in 4's words; tests/integration/test_trt_environment.py reads them with 4 itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.artifact import ArtifactError
from runtime.artifact.generations import older_model, readable, write_for_older
from tests.harness.models import rope, saved


def test_every_family_says_again_what_it_said(tmp_path: Path) -> None:
    """What transformers 5 made of the older words is told in them again, and reads the same in 5."""
    for place, (family, said) in zip(rope.write_all(tmp_path), rope.FAMILIES, strict=True):
        newer = json.loads((place / "config.json").read_bytes())
        older = older_model(newer)
        assert "rope_parameters" not in json.dumps(older), family
        assert older_model(older) == older
        text: dict[str, Any] = older.get("text_config", older)  # type: ignore[assignment]
        for name, value in said.get("text_config", said).items():
            assert name == "rope_scaling" or text[name] == value, (family, name)
        again = rope.config(older.pop("model_type"), older).to_dict()
        assert rotation(again) == rotation(newer), family


def rotation(config: dict[str, Any]) -> object:
    """How the layers rotate, in transformers 5's words; `type` is an old name of `rope_type`."""
    text = config.get("text_config", config)
    return json.loads(json.dumps(text["rope_parameters"]), object_hook=lambda part: {**part, "type": None})


def test_layers_that_cannot_be_told_are_refused() -> None:
    newer = {"model_type": "new", "rope_parameters": {"full_attention": {"rope_theta": 1.0}}}
    with pytest.raises(ArtifactError, match=r"found new with rope_parameters for each kind of layer; build it for"):
        older_model(newer)
    parts = {
        kind: {"rope_type": "default", "rope_theta": speed}
        for kind, speed in (("full_attention", 1.0), ("sliding_attention", 2.0))
    }
    with pytest.raises(ArtifactError):
        older_model({"model_type": "olmo3", "rope_parameters": parts})  # it has one speed in 4
    assert older_model({"model_type": "gemma3_text", "rope_parameters": parts})["rope_local_base_freq"] == 2.0


@pytest.mark.parametrize("config", [{}, {"rope_theta": 1.0}, {"rope_parameters": None}, {"rope_parameters": {}}])
def test_what_says_nothing_of_it_keeps_what_it_says(config: dict[str, object]) -> None:
    assert older_model(config).get("rope_theta") == config.get("rope_theta")
    assert "rope_scaling" not in older_model(config)


def test_a_source_is_left_alone_and_read_through_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = next(saved.write_all(tmp_path))
    rope.config(*rope.FAMILIES[0]).save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with readable(folder) as same:
        assert same == folder
    monkeypatch.setattr("transformers.__version__", "4.57.3")
    with readable(folder) as links:
        assert json.loads((links / "config.json").read_bytes())["rope_theta"] == 500123.0
        assert (
            json.loads((links / "tokenizer_config.json").read_bytes())["tokenizer_class"] == "PreTrainedTokenizerFast"
        )
        assert (links / "tokenizer.json").read_bytes() == before["tokenizer.json"]
        with readable(links) as again:
            assert again == links
    assert not links.exists()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_for_older(folder)
    with readable(folder) as written:
        assert written == folder
