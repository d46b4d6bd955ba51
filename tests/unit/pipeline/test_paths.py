"""Paths as people name them: what the system does not take is found at once, and no two names become one."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import paths
from pipeline.problem import Problem

NAMES = st.one_of(
    st.text(st.characters(exclude_categories=())),  # halves of surrogates too
    st.text("~/.-[]:@ \n\0é模\udce9a", max_size=40),
    st.binary(max_size=40).map(os.fsdecode),
    st.integers(200, 6000).map("a".__mul__),
    st.integers(50, 2000).map("模/".__mul__),
)


@given(NAMES)
def test_every_name_is_taken_or_refused_in_words(text: str) -> None:
    found = paths.named("WHERE", Path(text))
    if isinstance(found, Problem):
        assert str(found).startswith("WHERE: expected a path")
    else:
        assert not os.path.lexists(found / "nothing-of-that-name")
        paths.folder_problem("WHERE", found)
        paths.free_bytes(found)
        str(found).encode()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("~nobody-of-that-name/x", "a user who is not known here"),
        ("a\0b", "which holds a NUL"),
        ("~\0", "which holds a NUL"),
        ("a" * 256, "a name of 256 bytes, of 255"),
        ("模" * 86, "a name of 258 bytes"),
        ("a/" * 3000, "bytes, of 4095"),
        (os.fsdecode(b"caf\xe9"), "caf\\udce9; rename it"),
    ],
)
def test_what_the_system_does_not_take_is_said(name: str, why: str) -> None:
    found = paths.named("--out", Path(name))
    assert isinstance(found, Problem)
    assert why in str(found)


@pytest.mark.parametrize("name", ["a" * 255, "模" * 85, "[/b]", "a b", "-", "new\nline", ":smile:", "é"])
def test_what_it_takes_is_taken(name: str) -> None:
    assert paths.named("--out", Path(name)) == Path(name)


def test_the_home_folder_is_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.named("--out", Path("~/x")) == tmp_path / "x"


def test_a_working_folder_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    found = paths.named("--out", Path("x"))
    monkeypatch.chdir(tmp_path)
    assert isinstance(found, Problem)
    assert "this folder is gone" in str(found)


def test_where_a_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "to-folder").symlink_to(tmp_path)
    told = {
        name: paths.folder_problem("W", tmp_path / name) for name in ("", "x", "x/y/z", "to-folder", "to-folder/new")
    }
    assert set(told.values()) == {None}
    for name, why in (
        ("file", "a file at"),
        ("file/x/y", "a file at"),
        ("link", "a link to no folder at"),
        ("link/x", "a link to no folder at"),
        ("circle/x", "a link to no folder at"),
        ("/dev/null", "a file at /dev/null"),
        ("/proc/nope", "/proc, which holds no files of anybody"),
        ("/proc/self/fd/x/y", "which holds no files of anybody"),
        ("/sys/x", "/sys, which holds no files of anybody"),
    ):
        assert why in str(paths.folder_problem("W", tmp_path / name)), name


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_others_is_told(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "which this user may not write" in str(paths.folder_problem("W", tmp_path / "locked/x"))


IDENTITIES = st.text(st.characters(exclude_categories=()), min_size=1)


@given(st.lists(IDENTITIES, unique=True, min_size=2, max_size=20))
def test_two_names_never_become_one(identities: list[str]) -> None:
    made = [paths.distinct_name(Path(identity).name or identity, identity) for identity in identities]
    assert len(set(made)) == len(made)
    # A disk may take two ways to write one letter for one.
    assert len({unicodedata.normalize("NFC", name) for name in made}) == len(made)
    for name in made:
        assert isinstance(paths.named("--out", Path(name)), Path)
        assert Path(name).name == name
        assert not name.startswith((".", "-"))
        assert len(name.encode()) <= paths.READABLE_BYTES + 9


@pytest.mark.parametrize("name", ["llama", "org--model", "org--model@v1.0", "模型"])
def test_a_name_that_is_fit_stays(name: str) -> None:
    assert paths.distinct_name(name, name) == name


def test_a_name_stays_readable_in_any_alphabet() -> None:
    assert paths.distinct_name("聊天 模型", "/models/聊天 模型").startswith("聊天-模型-")
    assert paths.distinct_name("модель", "/models/модель").startswith("модель-")
