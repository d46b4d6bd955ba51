"""Laying out an artifact's root files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.build.layout import copy_model
from pipeline.quantize.job import copy_auxiliary_files
from pipeline.stages.stage import StageError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "onnx").mkdir(parents=True)
    for name in (
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "LICENSE",
        "modeling_custom.py",
        "README.md",
        "recipe.yaml",
        "pytorch_model.bin",
        ".gitattributes",
        "onnx/model.onnx",
    ):
        (folder / name).write_text(name)
    return folder


def test_the_model_travels_and_other_formats_stay(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    copy_model(model, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "modeling_custom.py",
        "tokenizer.json",
    ]
    assert (out / "config.json").read_text() == "config.json"


def test_a_change_of_the_artifact_does_not_reach_the_stage_it_came_from(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    copy_model(model, out)
    (out / "config.json").write_text("tampered")
    assert (model / "config.json").read_text() == "config.json"


@pytest.mark.parametrize("missing", ["config.json", "model-00001-of-00002.safetensors"])
def test_a_folder_that_is_no_model_is_refused(model: Path, tmp_path: Path, missing: str) -> None:
    (model / missing).unlink()
    with pytest.raises(StageError, match=r"expected .*, found none"):
        copy_model(model, tmp_path)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="found none"):
        copy_model(tmp_path / "nowhere", tmp_path)


def test_chat_templates_in_a_folder_of_their_own_travel(model: Path, tmp_path: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/chat.jinja").write_text("template")
    for copy in (copy_model, copy_auxiliary_files):
        out = tmp_path / copy.__name__
        out.mkdir()
        copy(model, out)
        assert (out / "additional_chat_templates/chat.jinja").read_text() == "template"


@pytest.mark.parametrize(
    ("told", "written", "kept"),
    [
        (["PhiMoEForCausalLM"], ["PhimoeForCausalLM"], ["PhiMoEForCausalLM"]),
        ("PhiMoEForCausalLM", ["PhimoeForCausalLM"], ["PhiMoEForCausalLM"]),
        (["LlamaForCausalLM"], ["LlamaForCausalLM"], ["LlamaForCausalLM"]),
        (["Another"], ["LlamaForCausalLM"], ["LlamaForCausalLM"]),  # loaded by a class that is not its own
        (None, ["LlamaForCausalLM"], ["LlamaForCausalLM"]),
        ([5], ["LlamaForCausalLM"], ["LlamaForCausalLM"]),
        (["A", "B"], None, None),
    ],
)
def test_the_class_is_spelt_as_the_source_spells_it(
    tmp_path: Path, told: object, written: object, kept: object
) -> None:
    """Engines know models by that name, in that case; transformers has one of its own for some."""
    source, out = tmp_path / "source", tmp_path / "out"
    for folder, names in ((source, told), (out, written)):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"architectures": names, "limit": float("inf")}))
    copy_auxiliary_files(source, out)
    assert json.loads((out / "config.json").read_bytes()) == {"architectures": kept, "limit": float("inf")}
