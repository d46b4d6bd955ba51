"""Paths of an artifact: what is accepted stays inside wherever it is unpacked, and every field of them is checked."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from runtime import artifact
from runtime.artifact import ArtifactError, BuildMetadata, FileEntry
from runtime.artifact.files.paths import _inside, listing_problem, path_problem
from tests.hub.golden import copy, document, reseal

HASH = "0" * 64
# What paths are made of by those who mean harm, beside letters.
NASTY = st.sampled_from(
    [
        *(
            "..",
            ".",
            "",
            "/",
            "//",
            "\\",
            "..\\",
            "C:",
            "\0",
            "\n",
            "\x1b[2J",
            "~",
            "~root",
            "$HOME",
            "%2e%2e",
            " ",
            "\t",
        ),
        *(".hidden", ".git", ".partial", "x.partial", "X.PARTIAL", "con", "NUL.txt", "com1", "a.", "a ", " a", "a:b"),
        *("build_metadata.json", "BUILD_METADATA.json", "README.md", "readme.MD", "model.sig", ".gitattributes"),
        *("é", "é", "ﬁ", "İ", "ß", "SS", "\u202e", "\u200b", "\ud800", "\udcff", "\u2028", "x" * 255, "x" * 256),
        *("tool", "config.json", "model.safetensors", "__pycache__", "-rf", "*", "?", "|", "a'b", 'a"b', "$(id)"),
    ]
)
PATHS = st.one_of(
    st.lists(st.one_of(NASTY, st.text(max_size=4)), max_size=6).map("/".join),
    st.lists(NASTY, max_size=6).map("".join),
    st.text(max_size=40),
)


def refused(path: str) -> bool:
    try:
        FileEntry(path=path, size=0, sha256=HASH)
    except ValidationError:
        return True
    return False


@given(path=PATHS)
@example(path="../outside")
@example(path="/etc/passwd")
@example(path="tool/.hidden")
@example(path="tool/../../x")
def test_an_accepted_path_stays_inside_and_means_one_file_everywhere(path: str) -> None:
    if refused(path):
        assert path_problem(path)
        return
    assert posixpath.normpath(path) == path
    assert not posixpath.isabs(path)
    assert unicodedata.normalize("NFC", path) == path
    assert path.isprintable()
    assert len(path.encode()) <= 1024
    assert not set(path) & set('\\:*?"<>|')
    for part in path.split("/"):
        assert part
        assert part == part.strip()
        assert not part.startswith(".")
        assert not part.endswith(".")
        assert not part.lower().endswith(".partial")
    root = Path("/artifact")
    assert root in (root / path).parents


@pytest.mark.parametrize(
    "path",
    [
        *(
            "model-00001-of-00002.safetensors",
            "tool/config.json",
            "trt-llm/engines/sm90_trt-llm-1.2.1_cuda13.0/rank0.engine",
        ),
        *("compile_cache/torch_compile_cache/ab12/rank_0_0/backbone/artifact_shape_None_subgraph_0", "ünïcode/語.txt"),
        *(
            "compile_cache/triton/XYZ/__grp__triton_poi_fused_0.json",
            "a,b (1)+c=d@e#f!.json",
            "LICENSE",
            "con.fig/aux-x",
        ),
    ],
)
def test_names_that_models_and_compilers_have_are_accepted(path: str) -> None:
    if path.startswith("con."):
        assert refused(path), "a device on Windows, whatever follows the dot"
        return
    assert not refused(path)


def models(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    if model in seen:
        return
    seen.add(model)
    yield model

    def inside(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from models(annotation, seen)
        for argument in get_args(annotation):
            yield from inside(argument)

    for field in model.model_fields.values():
        yield from inside(field.annotation)


def is_checked(field: Any) -> bool:
    """Whether a field has the one type of paths, perhaps beside none."""

    def marks(annotation: Any) -> Iterator[Any]:
        yield from getattr(annotation, "__metadata__", ())
        for argument in get_args(annotation):
            yield from marks(argument)

    return any(getattr(mark, "func", None) is _inside for mark in (*field.metadata, *marks(field.annotation)))


def test_every_path_of_the_metadata_is_of_the_one_type() -> None:
    checked = {
        f"{model.__name__}.{name}"
        for model in models(BuildMetadata, set())
        for name, field in model.model_fields.items()
        if is_checked(field)
    }
    named = {
        f"{model.__name__}.{name}"
        for model in models(BuildMetadata, set())
        for name in model.model_fields
        if any(word in name for word in ("path", "folder", "dir", "cache", "file")) and name != "files"
        if (model.__name__, name) != ("EngineChoices", "kv_cache_dtype")  # a type of numbers
    }
    assert checked == named == {"FileEntry.path", "ToolModel.path", "ChatModel.engine_path", "ChatModel.compile_cache"}


@pytest.mark.parametrize(
    "value", ["../outside", "/etc", "tool/.hidden", "..", ".", "tool/", "a\\b", "a\0b", "", "x" * 256]
)
@pytest.mark.parametrize(("part", "field"), [("tool", "path"), ("chat", "engine_path"), ("chat", "compile_cache")])
def test_no_folder_of_the_metadata_leaves_the_artifact(tmp_path: Path, part: str, field: str, value: str) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    changed = document(folder)
    changed[part][field] = value
    reseal(folder, changed)
    with pytest.raises(
        ArtifactError, match=rf"field {part}\.{field}: .*a path must stay inside the artifact"
    ) as refusal:
        artifact.read(folder)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        (["a", "a"], "lists a file twice: a"),
        (["Config.json", "config.json"], "lists Config.json and config.json, the same name for some"),
        (["straße/a", "STRASSE/b"], "lists files in straße and STRASSE, the same name for some"),
        (["a/b", "a"], "lists a both as a file and as a folder"),
        (["A/b", "a"], "lists a both as a file and as a folder"),
        (["tool/a", "tool/b", "tools"], None),
    ],
)
def test_two_paths_that_cannot_lie_side_by_side_everywhere_are_refused(paths: list[str], problem: str | None) -> None:
    assert listing_problem(paths) == problem


@given(
    paths=st.lists(st.lists(st.sampled_from(["a", "A", "b", "c"]), min_size=1, max_size=3).map("/".join), max_size=5)
)
def test_an_accepted_list_can_be_laid_out_where_case_does_not_count(paths: list[str]) -> None:
    if listing_problem(paths) is not None:
        return
    files = {path.casefold() for path in paths}
    assert len(files) == len(paths)
    folders = {parent for path in files for parent in map(str, Path(path).parents)}
    assert not files & folders
