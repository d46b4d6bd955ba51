"""A model on the hub is planned from the headers of its weights; nothing is fetched that need not be."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from pipeline.checkpoint.tensors import Tensor
from pipeline.source import model_source as source
from pipeline.source import remote_headers
from tests.harness.builds.progress import RecordedProgress
from tests.hub import Hub
from tests.hub.client import configure_client
from tests.hub.models import LARGE, publish, safetensors
from tests.hub.store import Stored

REPO = "acme/llama"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as running:
        configure_client(monkeypatch, running)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
        yield running
        huggingface_hub.close_session()


def shard(name: str, size: int = 200_000) -> bytes:
    header = json.dumps({name: {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def add(hub: Hub, files: dict[str, bytes], without: tuple[str, ...] = ()) -> None:
    repository = hub.repositories[REPO]
    before = {name: stored for name, stored in repository.head.files.items() if name not in without}
    large = {name: Stored(data, lfs=name in LARGE or name.endswith("rs")) for name, data in files.items()}
    repository.commit("more", before | large)


def sent(hub: Hub) -> int:
    return sum(request.sent for request in hub.requests("GET", "^/storage/"))


def test_eight_bytes_and_the_header_are_all_that_is_read(hub: Hub, tmp_path: Path) -> None:
    publish(hub, REPO, tmp_path / "model", weights=5 << 20)
    facts = source.read_facts(REPO, "CHAT_MODEL")
    assert facts.problems == ()
    assert facts.tensors == {"weight": Tensor("U8", (5 << 20,), 5 << 20)}
    header = len(safetensors(5 << 20)) - (5 << 20)
    assert sent(hub) == header
    assert sorted(request.range or "" for request in hub.requests("GET", "^/storage/")) == [
        "bytes=0-7",
        f"bytes=8-{header - 1}",
    ]


def test_what_a_repository_holds_twice_is_counted_read_and_fetched_once(hub: Hub, tmp_path: Path) -> None:
    publish(hub, REPO, tmp_path / "model")
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    twice = {
        **{name: shard(letter) for name, letter in zip(SHARDS, "ab", strict=True)},
        "model.safetensors.index.json": json.dumps(index).encode(),
        "consolidated.safetensors": shard("c"),
        "consolidated.safetensors.index.json": b"{}",
        "pytorch_model.bin": bytes(1000),
        "original/consolidated.safetensors": shard("d"),
        "original/params.json": b"{}",
        "onnx/model.safetensors": shard("e"),
        "additional_chat_templates/tools.jinja": b"{{ messages }}",
    }
    add(hub, twice, without=("model.safetensors",))
    facts = source.read_facts(REPO, "CHAT_MODEL")
    assert facts.problems == ()
    assert set(facts.tensors) == {"a", "b"}
    assert facts.weight_bytes == 2 * len(shard("a"))
    fetched = source.fetch(facts, RecordedProgress())
    names = {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()}
    assert {*SHARDS, "model.safetensors.index.json", "additional_chat_templates/tools.jinja"} <= names
    assert not any("consolidated" in name or name.endswith(".bin") or name.startswith("o") for name in names), names


def test_a_shard_that_the_index_names_and_nobody_has_is_told_before_any_download(hub: Hub, tmp_path: Path) -> None:
    publish(hub, REPO, tmp_path / "model")
    add(hub, {"model.safetensors.index.json": json.dumps({"weight_map": {"a": SHARDS[0]}}).encode()})
    (problem,) = source.read_facts(REPO, "CHAT_MODEL").problems
    assert str(problem) == f"CHAT_MODEL: expected the shard {REPO}/{SHARDS[0]}, found none; fetch it again"


def test_weights_that_are_none_are_told_before_any_download(hub: Hub, tmp_path: Path) -> None:
    publish(hub, REPO, tmp_path / "model")
    add(hub, {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n" * 9})
    (problem,) = source.read_facts(REPO, "CHAT_MODEL").problems
    assert f"expected a safetensors header in {REPO}/model.safetensors" in str(problem)


def test_a_hub_that_does_not_answer_leaves_the_layers_unread(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, REPO, tmp_path / "model")
    monkeypatch.setattr(remote_headers, "TRIES", 1)
    hub.fail("GET", "^/storage/", status=503, times=9)
    facts = source.read_facts(REPO, "CHAT_MODEL")
    assert (facts.problems, facts.tensors) == ((), {})
    assert "503" in (facts.unread or "")
