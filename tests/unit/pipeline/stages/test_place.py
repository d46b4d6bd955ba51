"""What may be replaced at a place: what the pipeline made itself, told by content, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.problem import printable
from pipeline.stages.place import artifact_problem, foreign_files, locate, model_problem, write_problem
from runtime import artifact
from tests.hub.artifacts import cpu_artifact


def told(out: Path, cache: Path | None = None) -> str:
    return str(artifact_problem(out, cache) or "")


@pytest.mark.parametrize("form", ["plain", "slash", "dots", "link", "link to a link", "link in the way"])
def test_an_artifact_may_be_replaced_however_it_is_named(tmp_path: Path, form: str) -> None:
    folder = cpu_artifact(tmp_path / "at" / "artifact", tool=True)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "second").symlink_to("link")
    (tmp_path / "way").symlink_to("at")
    out = {
        "plain": folder,
        "slash": Path(f"{folder}/"),
        "dots": folder / "tool" / "..",
        "link": tmp_path / "link",
        "link to a link": tmp_path / "second",
        "link in the way": tmp_path / "way" / "artifact",
    }[form]
    assert told(out) == ""
    assert locate(out) == folder


def test_nothing_an_empty_folder_and_a_link_to_nothing_are_places(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("elsewhere")
    for name in ("empty", "dangling", "new", "deep/er/new"):
        assert told(tmp_path / name) == ""


def test_what_validate_and_sign_write_is_the_artifacts_own(tmp_path: Path) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    for name in ("model.sig", "model.sig.partial", "build_metadata.json.partial"):
        (folder / name).write_text("")
    (folder / "empty" / "deep").mkdir(parents=True)
    assert told(folder) == ""


STRANGERS = [
    *("notes.txt", ".git/HEAD", "tool/notes.txt", "deep/down/thesis.txt", "README.md", ".gitattributes", ".hidden"),
    *("weights.partial", "tool/model.sig", "old/build_metadata.json", "Documents/a b.txt", "line\nbreak"),
]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_an_artifact_that_holds_more_is_spared_and_the_stranger_named(tmp_path: Path, stranger: str) -> None:
    folder = cpu_artifact(tmp_path / "artifact", tool=True)
    path = folder / stranger
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("irreplaceable")
    assert len(found := foreign_files(folder)) == 1
    assert stranger == found[0] or stranger.startswith(found[0])
    assert "files in" in told(folder)
    assert printable(found[0]) in told(folder)


@pytest.mark.parametrize("kind", ["link", "dangling", "folder link", "pipe"])
def test_what_is_no_file_is_a_stranger_too(tmp_path: Path, kind: str) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    mine = tmp_path / "mine"
    mine.mkdir()
    if kind == "pipe":
        os.mkfifo(folder / "x")
    else:
        (folder / "x").symlink_to({"link": tmp_path, "dangling": tmp_path / "gone", "folder link": mine}[kind])
    assert foreign_files(folder) == ["x"]


def test_a_folder_of_the_artifact_that_became_a_link_is_a_stranger(tmp_path: Path) -> None:
    folder = cpu_artifact(tmp_path / "artifact", tool=True)
    (folder / "tool").rename(tmp_path / "elsewhere")
    (folder / "tool").symlink_to(tmp_path / "elsewhere")
    assert foreign_files(folder) == ["tool"]


@pytest.mark.parametrize("content", ["{}", "", "null", '{"schema_version": 1}', "edited"])
def test_metadata_that_the_pipeline_did_not_write_make_nothing_ours(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "home"
    (folder / "Documents").mkdir(parents=True)
    (folder / "Documents" / "thesis.txt").write_text("irreplaceable")
    if content == "edited":
        metadata = artifact.read(cpu_artifact(tmp_path / "artifact"))
        metadata.write(folder)
        content = (folder / "build_metadata.json").read_text().replace('"lane": "cpu"', '"lane": "vllm"')
    (folder / "build_metadata.json").write_text(content)
    assert "did not write" in told(folder)


def test_a_folder_that_lacks_what_its_metadata_lists_may_be_replaced(tmp_path: Path) -> None:
    """So that a damaged artifact is put right; a file of it that changed is still one of it."""
    folder = cpu_artifact(tmp_path / "artifact", tool=True)
    (folder / "config.json").write_text("{}")
    shutil.rmtree(folder / "tool")
    assert told(folder) == ""


@pytest.mark.parametrize("content", ["file", "pipe", "loop", "below a file", "unknown user", "too long", "zero"])
def test_what_is_no_folder_is_named(tmp_path: Path, content: str) -> None:
    out = tmp_path / "x"
    if content == "file":
        out.write_text("irreplaceable")
    elif content == "pipe":
        os.mkfifo(out)
    elif content == "loop":
        out.symlink_to(out)
    elif content == "below a file":
        out.write_text("irreplaceable")
        out /= "deep"
    else:
        out = {"unknown user": Path("~nobody-of-that-name/x"), "too long": tmp_path / ("x" * 5000)}.get(
            content, Path("a\0b")
        )
    assert told(out).startswith("--out: expected a ")
    assert told(out).endswith("choose another --out")


def test_places_where_no_folder_can_be_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here, cache = (tmp_path / name for name in ("home", "up/here", "cache"))
    for folder in (home, here, cache):
        folder.mkdir(parents=True)
    holder = cpu_artifact(tmp_path / "artifact")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    expected = {
        Path("~"): "the home folder",
        Path(): "which this command runs in",
        Path(".."): "other files in ..",
        here / "": "which this command runs in",
        cache: "which holds the cache",
        cache / "build" / "x": "lies in the cache",
        holder / "inner": "lies in the artifact",
        holder / "tool" / "deep" / "inner": "lies in the artifact",
        Path("/proc"): "--out: expected",
        Path("/"): "--out: expected",
    }
    for out, words in expected.items():
        assert words in told(out, cache), out


def test_a_place_that_cannot_be_written_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs this may be root, whom nothing is denied; what the system answers is all that counts."""
    folder, denied = cpu_artifact(tmp_path / "at" / "artifact"), [tmp_path / "at"]
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) not in denied)
    for out in (folder, tmp_path / "at" / "new", tmp_path / "at" / "deep" / "new"):
        assert f"{tmp_path / 'at'}, which this user may not write" in told(out)
    assert write_problem(folder) is None
    denied[:] = [folder]
    assert f"{folder}, which this user may not read and write" in told(folder)
    assert "a folder that this user may write" in str(write_problem(folder))


def test_a_quantized_model_is_ours_when_the_cache_recorded_its_files(tmp_path: Path) -> None:
    """Many people have quantized models, which only look like ours."""
    other, cache = tmp_path / "Llama-AWQ", tmp_path / "cache"
    other.mkdir()
    (other / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    (other / "model.safetensors").write_bytes(b"downloaded for hours")
    found = str(model_problem(other, cache))
    assert "--out: expected nothing, an empty folder or a quantized model, found something else" in found
    assert "config.json, model.safetensors" in found


@given(
    st.dictionaries(
        st.text(
            st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=20
        ).filter(lambda name: name not in {".", ".."}),
        st.booleans(),
        max_size=4,
    )
)
def test_whatever_is_added_to_an_artifact_is_told(
    tmp_path_factory: pytest.TempPathFactory, added: dict[str, bool]
) -> None:
    folder = cpu_artifact(tmp_path_factory.mktemp("place") / "artifact")
    listed = {path.name for path in folder.iterdir()}
    mine = set()
    for name, deep in added.items():
        if name in listed or len(name.encode()) > 200:
            continue
        path = folder / name / "x" if deep else folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("irreplaceable")
        mine.add(f"{name}/" if deep else name)
    expected = mine - {"model.sig", "model.sig.partial", "build_metadata.json.partial"}
    assert set(foreign_files(folder)) == expected
    shutil.rmtree(folder)
