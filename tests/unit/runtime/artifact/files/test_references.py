"""Names inside an artifact's files that loaders follow: none leads out of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime import artifact
from runtime.artifact.files.references import reference_problem
from runtime.cli import app
from tests.hub.golden import copy, relist

LISTED = {"model-1.safetensors", "tool/model-1.safetensors"}


@pytest.mark.parametrize(
    ("path", "content", "problem"),
    [
        ("model.safetensors.index.json", {"weight_map": {"a": "model-1.safetensors"}}, None),
        ("tool/model.safetensors.index.json", {"weight_map": {"a": "model-1.safetensors"}}, None),
        ("model.safetensors.index.json", {"weight_map": {"a": "../x.safetensors"}}, "which is not one of its files"),
        ("model.safetensors.index.json", {"weight_map": {"a": "/x.safetensors"}}, "which is not one of its files"),
        ("tool/model.safetensors.index.json", {"weight_map": {"a": "../model-1.safetensors"}}, "is not one of its"),
        ("model.safetensors.index.json", {"weight_map": {"a": 7}}, "the file 7, which is not one of its files"),
        ("model.safetensors.index.json", {"weight_map": None}, None),
        ("adapter_config.json", {"base_model_name_or_path": "/x"}, "an adapter"),
        ("tool/adapter_config.json", {}, "an adapter"),
        ("config.json", {"speculators_config": {"verifier": {"name_or_path": "/x"}}}, "by speculators_config"),
        ("config.json", {"text_config": {"_attn_implementation": "org/kernel"}}, "by _attn_implementation"),
        ("tool/config.json", {"attn_implementation": "org/kernel@v1"}, "code on the hub, by attn_implementation"),
        (
            "config.json",
            {"_attn_implementation": "sdpa", "_name_or_path": "/home/x/llama", "speculators_config": None},
            None,
        ),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.0.json"], "tokenizer_file": "/x"}, None),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../../tokenizer.4.0.json"]}, "which leads out of it"),
        ("config.json", ["speculators_config"], None),
    ],
)
def test_what_is_named_is_in_the_artifact(path: str, content: object, problem: str | None) -> None:
    found = reference_problem(path, json.dumps(content).encode(), LISTED)
    assert found is None if problem is None else problem in str(found)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_what_is_no_json_is_for_its_loader_to_tell(content: bytes) -> None:
    assert reference_problem("config.json", content, LISTED) is None


def test_the_command_refuses_shards_outside_in_one_line(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    index = {"weight_map": {"a": "../../elsewhere/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    relist(folder)
    checked = CliRunner().invoke(app, ["check", str(folder)])
    assert (checked.exit_code, len(checked.stderr.splitlines())) == (65, 1)
    assert (
        "expected nothing outside of the artifact, found the file ../../elsewhere/model.safetensors" in checked.stderr
    )


def test_metadata_are_not_written_through_a_link(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    mine = tmp_path / "mine"
    mine.write_text("a thesis")
    (folder / "build_metadata.json.partial").symlink_to(mine)
    before = artifact.read(folder)
    before.write(folder)
    assert mine.read_text() == "a thesis"
    assert not (folder / "build_metadata.json").is_symlink()
    assert artifact.read(folder) == before
