"""Licences: what a source's card says of one, which the hub takes, and what the artifact's card says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import BuildRequest, hardware, prepare
from pipeline.problem import WrongRequestError
from pipeline.publish import preconditions, publishing
from pipeline.publish.describe import source
from pipeline.publish.model_card import card
from pipeline.publish.preconditions import SourceModel
from pipeline.source import licenses, read_facts
from runtime import artifact
from tests.harness.builds import standins
from tests.harness.trt.lane import model
from tests.hub import Account, Hub
from tests.hub.artifacts import cpu_artifact
from tests.hub.client import configure_client
from tests.hub.models import publish
from tests.hub.store import Stored

REPO = "acme/llama-8b-int8"
ENVIRONMENT = {"HF_TOKEN": "hf_writer", "HF_PUSH_REPO_ID": REPO}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(accounts={"hf_writer": Account("acme")}) as running:
        configure_client(monkeypatch, running, "hf_writer")
        yield running
        huggingface_hub.close_session()


KNOWN = [("apache-2.0", None), ("MIT", None), (" Gemma ", None), ("openrail++", None), ("other", "my-license")]
REFUSED = [
    (None, None, "expected a source with a known licence, found none for acme/llama"),
    ("", None, "expected a source with a known licence, found none"),
    ("unknown", None, "expected a source with a known licence, found none"),
    ("Apache License 2.0", None, "expected a licence by the id that the hub has for it, found 'Apache License 2.0'"),
    ("mit, apache-2.0", None, "by the id that the hub has for it, found 'mit, apache-2.0'"),
    ("Permission is hereby granted, free of charge…", None, "by the id that the hub has for it"),
    ("https://example.com/license", None, "by the id that the hub has for it"),
    ("other", None, "expected the name of a licence that is `other`, found none for acme/llama; add `license_name`"),
]


def problems(text: str | None, name: str | None, role: str = "CHAT_MODEL") -> list[str]:
    told = preconditions.check_destination([SourceModel(role, "acme/llama", text, False, name)], None, ENVIRONMENT)[1]
    return [str(problem) for problem in told]


@pytest.mark.parametrize(("text", "name"), KNOWN)
def test_a_licence_that_the_hub_knows_is_taken(hub: Hub, text: str, name: str | None) -> None:
    assert problems(text, name) == []


@pytest.mark.parametrize("role", ["CHAT_MODEL", "TOOL_MODEL"])
@pytest.mark.parametrize(("text", "name", "why"), REFUSED)
def test_another_is_told_before_any_work(hub: Hub, role: str, text: str | None, name: str | None, why: str) -> None:
    (told,) = problems(text, name, role)
    assert told.startswith(f"{role}: ")
    assert why in told
    assert "front matter of its README.md" in told
    assert not hub.requests("POST")


@given(st.text() | st.sampled_from(sorted(licenses.HUB_IDS)).map(str.upper))
def test_what_is_taken_is_an_id_of_the_hub(text: str) -> None:
    taken = licenses.hub_id(text)
    assert taken is None or taken in licenses.HUB_IDS
    assert (taken is None) == (text.strip().lower() not in licenses.HUB_IDS)


CARDS: list[dict[str, Any]] = [
    {"license": "apache-2.0"},
    {"license": "other", "license_name": "my-license", "license_link": "LICENSE"},
    {"license": "other", "license_name": "my-license", "license_link": "https://example.com/license"},
    {"license": ["mit", "apache-2.0"]},
    {"license": "A text\nof two lines"},
    {"license": None},
    {},
]


@pytest.mark.parametrize("matter", CARDS)
def test_a_card_says_the_same_in_a_folder_and_on_the_hub(hub: Hub, tmp_path: Path, matter: dict[str, Any]) -> None:
    readme = f"---\n{yaml.safe_dump(matter)}---\ntext\n"
    publish(hub, "acme/llama", tmp_path / "llama")
    repository = hub.repositories["acme/llama"]
    commit = repository.commit("card", {**repository.head.files, "README.md": Stored(readme.encode(), lfs=False)})
    (tmp_path / "llama/README.md").write_text(readme)
    there, here = read_facts("acme/llama", "CHAT_MODEL"), read_facts(str(tmp_path / "llama"), "CHAT_MODEL")
    assert (there.license, there.license_name) == (here.license, here.license_name)
    link = matter.get("license_link")
    if link == "LICENSE":
        # A file of the source's repository lies there, and not beside the artifact.
        assert there.license_link == f"https://huggingface.co/acme/llama/blob/{commit.oid}/LICENSE"
        assert here.license_link is None
    else:
        assert (there.license_link, here.license_link) == (link, link)


def test_what_a_source_calls_its_licence_is_in_the_metadata_and_the_card(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    matter = {"license": "Other", "license_name": "my-license", "license_link": "https://example.com/license"}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(matter)}---\n")
    made = source(read_facts(str(folder), "CHAT_MODEL"), "c" * 64)
    assert (made.license, made.license_name) == ("Other", "my-license")
    metadata = artifact.read(cpu_artifact(tmp_path / "artifact"))
    assert metadata.chat is not None
    changed = metadata.model_copy(update={"chat": metadata.chat.model_copy(update={"source": made})})
    data = ModelCard(card(changed, REPO)).data.to_dict()
    assert {name: data[name] for name in matter} == {**matter, "license": "other"}


def test_a_plan_of_a_push_tells_a_licence_that_the_hub_refuses(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "describe", standins.describe)
    folder = model(tmp_path / "model", max_position_embeddings=8192)
    (folder / "README.md").write_text("---\nlicense: Apache License 2.0\n---\n")
    monkeypatch.setenv("HF_PUSH_REPO_ID", REPO)
    request = BuildRequest(chat=str(folder), lanes=("cpu",), method="int8")
    assert prepare.prepare(request, tmp_path / "cache").plan
    with pytest.raises(WrongRequestError, match="by the id that the hub has for it"):
        publishing.check_before_run(request, tmp_path / "cache", pushing=True, sign_key=None)
