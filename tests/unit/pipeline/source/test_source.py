"""What is known of a model before it is fetched, and what is wrong with a damaged one."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from pipeline.checkpoint.shape import Shape
from pipeline.checkpoint.tensors import Header, header_of
from pipeline.source import checkpoint_in, content_hash, fetch, read_facts
from runtime.artifact import ArtifactError
from runtime.artifact.repository import Reference


def safetensors(path: Path, size: int = 16) -> None:
    header = json.dumps({"weight": {"dtype": "I8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "My-Model"
    home.mkdir()
    (home / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": 64}))
    (home / "tokenizer.json").write_text("{}")
    (home / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (home / "README.md").write_text("---\nlicense: mit\n---\n# My model\n")
    safetensors(home / "model.safetensors")
    return home


def problems(ref: str | Path, role: Any = "CHAT_MODEL") -> list[str]:
    return [str(problem) for problem in read_facts(str(ref), role).problems]


def test_a_folder_is_described_without_reading_its_weights(folder: Path) -> None:
    facts = read_facts(str(folder), "CHAT_MODEL")
    assert facts.problems == ()
    assert (facts.kind, facts.name, facts.path, facts.license) == ("folder", "My-Model", folder, "mit")
    assert facts.architecture == "LlamaForCausalLM"
    assert facts.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert facts.chat_template


@pytest.mark.parametrize("card", ["no front matter", "---\nlicense: [\n---\n", "---\n- a list\n---\n", ""])
def test_a_card_without_a_licence_is_no_obstacle(folder: Path, card: str) -> None:
    (folder / "README.md").write_text(card)
    facts = read_facts(str(folder), "CHAT_MODEL")
    assert (facts.license, facts.problems) == (None, ())


@pytest.mark.parametrize(
    ("stated", "license"),
    [
        ("mit", "mit"),
        ("[mit, apache-2.0]", "mit, apache-2.0"),
        ("|\n  A text\n  of lines", "A text of lines"),
        ("{name: mit}", None),
        ("", None),
        ("[]", None),
        ("'" + "long " * 100 + "'", "long " * 24 + "…"),
    ],
)
def test_a_licence_is_one_line_however_a_card_says_it(folder: Path, stated: str, license: str | None) -> None:
    (folder / "README.md").write_text(f"---\nlicense: {stated}\n---\n")
    found = read_facts(str(folder), "CHAT_MODEL").license
    assert found == license
    assert found is None or (found.isprintable() and len(found) <= 121)


def test_a_relative_folder_is_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert read_facts("My-Model", "CHAT_MODEL").path == folder


def test_modelopts_word_on_the_quantization_counts_where_config_json_is_silent(folder: Path) -> None:
    stated = {"quant_algo": "FP8", "kv_cache_quant_algo": None}
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {}, "quantization": stated}))
    config = read_facts(str(folder), "CHAT_MODEL").config
    assert config["quantization_config"] == {"quant_method": "modelopt", **stated}
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    assert read_facts(str(folder), "CHAT_MODEL").config["quantization_config"] == {"quant_method": "awq"}


def test_a_tensorrt_llm_checkpoint_inside_a_folder_is_seen(folder: Path) -> None:
    assert read_facts(str(folder), "CHAT_MODEL").checkpoint == {}
    assert checkpoint_in(folder) == folder
    (folder / "model.safetensors").unlink()
    inside = folder / "trt-llm" / "checkpoints"
    inside.mkdir(parents=True)
    config = {"architecture": "LlamaForCausalLM", "dtype": "float16", "quantization": {"quant_algo": "FP8"}}
    (inside / "config.json").write_text(json.dumps(config))
    safetensors(inside / "rank0.safetensors")
    facts = read_facts(str(folder), "CHAT_MODEL")
    assert (facts.problems, facts.checkpoint, facts.architecture) == ((), config, "LlamaForCausalLM")
    assert facts.weight_bytes == (inside / "rank0.safetensors").stat().st_size
    assert checkpoint_in(folder) == inside


def test_the_embedded_models_need_no_files() -> None:
    chat, tool = read_facts("embedded", "CHAT_MODEL"), read_facts("embedded", "TOOL_MODEL")
    assert chat.problems == tool.problems == ()
    assert Shape.of(chat.config).hidden == 576
    assert tool.architecture == "BertForSequenceClassification"


@pytest.mark.parametrize("ref", ["./nowhere", "a/b/c", "no-such-model", "org/name with space", "~/x", ""])
def test_what_is_neither_folder_nor_hub_id_is_named(ref: str) -> None:
    assert problems(ref) == [
        f"CHAT_MODEL: expected a folder, a hub id (org/name, org/name@revision) or `embedded`, found {ref!r}"
    ]


@pytest.mark.parametrize("ref", ["embeded", "embbedded", "Embedded", "embedde", "embeddded"])
def test_a_misspelt_embedded_model_is_asked_about(ref: str) -> None:
    [line] = problems(ref)
    assert line.endswith(f"found {ref!r}; did you mean `embedded`?")


def test_an_offline_hub_model_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (line,) = problems("org/no-such-model@v2")
    assert line.startswith("CHAT_MODEL: expected the model org/no-such-model@v2 on the hub, found no copy in the local")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("config.json", "expected config.json in"),
        ("model.safetensors", "expected *.safetensors in"),
        ("tokenizer.json", "expected a tokenizer in"),
        ("tokenizer_config.json", "expected a chat template in"),
    ],
)
def test_a_missing_file_is_a_problem(folder: Path, missing: str, expected: str) -> None:
    (folder / missing).unlink()
    (line,) = problems(folder)
    assert expected in line


def test_everything_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    assert len(problems(tmp_path)) == 4
    assert len(problems(tmp_path, "TOOL_MODEL")) == 3


@pytest.mark.parametrize("locked", [".", "model.safetensors"])
def test_what_this_user_may_not_read_is_named(folder: Path, locked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = (folder / locked).resolve()
    monkeypatch.setattr("os.access", lambda asked, mode: Path(asked) != path)  # root may read everything
    (problem,) = read_facts(str(folder), "CHAT_MODEL").problems
    assert str(problem) == (
        f"CHAT_MODEL: expected to read {path}, found that this user may not; "
        "let this user read it; in a container, `docker run --user`"
    )


def test_a_classifier_needs_no_chat_template(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert problems(folder, "TOOL_MODEL") == []


def test_a_template_in_its_own_file_counts(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert problems(folder) == []


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_config_that_is_no_object_is_a_problem(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    (line,) = problems(folder)
    assert "expected a JSON object" in line


def test_weights_in_another_format_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (line,) = problems(folder)
    assert "found pytorch_model.bin" in line


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_cut_off_weights_are_noticed(folder: Path, cut: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    (line,) = problems(folder)
    assert "model.safetensors" in line
    assert "fetch it again" in line


def test_missing_shards_are_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    lines = problems(folder)
    assert [line.partition(",")[0].rpartition("/")[2] for line in lines] == [
        "model-2.safetensors",
        "model-3.safetensors",
    ]


def test_the_content_hash_names_what_decides_answers(folder: Path) -> None:
    before = content_hash(folder)
    (folder / "README.md").write_text("another card")
    (folder / "picture.png").write_bytes(b"png")
    assert content_hash(folder) == before
    (folder / "config.json").write_text("{}")
    assert content_hash(folder) != before


def test_a_renamed_file_is_another_content(folder: Path) -> None:
    before = content_hash(folder)
    (folder / "tokenizer.json").rename(folder / "tokenizer2.json")
    assert content_hash(folder) != before


def flip(path: Path) -> None:
    """Change a byte of a file, and leave size and time as they were."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_that_kept_size_and_time_is_another_content(folder: Path) -> None:
    before = content_hash(folder)
    flip(folder / "model.safetensors")
    assert content_hash(folder) != before


def test_a_file_that_the_hub_lists_otherwise_is_refused(folder: Path) -> None:
    listed = {"model.safetensors": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()}
    assert content_hash(folder, listed) == content_hash(folder)
    flip(folder / "model.safetensors")
    with pytest.raises(
        ArtifactError, match=r"model\.safetensors: expected SHA-256 .*: it changed since it came; remove"
    ):
        content_hash(folder, listed)


def test_a_file_in_the_hubs_cache_is_held_against_its_name(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    blob = blobs / hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.rename(blob)
    weights.symlink_to(blob)
    content_hash(folder)
    flip(blob)
    with pytest.raises(ArtifactError, match="it changed since it came"):
        content_hash(folder)


def test_fetching_a_folder_copies_nothing(folder: Path) -> None:
    assert fetch(read_facts(str(folder), "CHAT_MODEL"), progress=None) == folder  # type: ignore[arg-type]


class Hub:
    """The three calls to the hub that a look takes, answered from a folder."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.fetched: list[str] = []
        self.failure: Exception | None = None
        monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: self)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", self.download)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot)
        monkeypatch.setattr("pipeline.source.model_source.read_headers", self.headers)

    def model_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        if self.failure:
            raise self.failure
        sizes = {path.name: path.stat().st_size for path in self.home.iterdir()}
        files = [SimpleNamespace(rfilename=name, size=size, lfs=None) for name, size in sizes.items()]
        return SimpleNamespace(sha=f"sha-of-{revision}", siblings=files, card_data={"license": "mit"})

    def download(self, repo: str, name: str, *, revision: str, token: str | None) -> str:
        assert revision.startswith("sha-of-")
        self.fetched.append(name)
        return str(self.home / name)

    def headers(self, reference: Reference, commit: str, names: Sequence[str]) -> list[Header]:
        return [header_of(self.home / name) for name in names]

    def snapshot(self, repo: str, **_: Any) -> str:
        raise LocalEntryNotFoundError("nothing cached")


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.example/api/models/org/model"))


def test_a_hub_model_is_pinned_and_its_weights_are_not_downloaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(folder, monkeypatch)
    facts = read_facts("org/model@v2", "CHAT_MODEL")
    assert facts.problems == ()
    assert (facts.kind, facts.name, facts.revision, facts.license) == ("hub", "org/model", "sha-of-v2", "mit")
    assert sorted(hub.fetched) == ["config.json", "tokenizer_config.json"]
    assert facts.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert facts.path is None


def test_a_hub_model_that_lacks_something_is_told_before_any_download(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")
    Hub(folder, monkeypatch)
    assert problems("org/model") == [
        "CHAT_MODEL: expected *.safetensors in org/model, found model.gguf; save it with `save_pretrained` or choose "
        "another model"
    ]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (GatedRepoError("gated", response=answer(403)), "found a gated one; accept its terms at"),
        (RepositoryNotFoundError("no", response=answer(404)), "found none that this token may see; check its name"),
        (HfHubHTTPError("down", response=answer(503)), "found status 503 from the hub"),
        (httpx.ConnectError("no route"), "found no copy in the local cache, and the hub is out of reach"),
        (OfflineModeIsEnabled("offline"), "found no copy in the local cache, and HF_HUB_OFFLINE is set"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_hub_that_refuses_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str
) -> None:
    Hub(folder, monkeypatch).failure = failure
    (line,) = problems("org/model")
    assert line.startswith("CHAT_MODEL: expected the model org/model on the hub, ")
    assert message in line


def test_out_of_reach_a_cached_model_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(folder, monkeypatch)
    hub.failure = httpx.ConnectError("no route")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    facts = read_facts("org/model", "CHAT_MODEL")
    assert facts.problems == ()
    assert (facts.kind, facts.name, facts.path, facts.revision) == ("hub", "org/model", folder, folder.name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "README.md", "x"])
def test_a_pipe_among_a_models_files_is_named_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    [problem] = read_facts(str(folder), "CHAT_MODEL").problems
    assert f"a pipe, a socket or a device at {folder / name}" in str(problem)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    [problem] = read_facts(str(folder), "CHAT_MODEL").problems
    assert str(folder / name) in str(problem)
