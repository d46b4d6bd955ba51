"""Compile caches that move with an artifact."""

from __future__ import annotations

import ast
import json
import os
import tempfile
from pathlib import Path

import pytest

from runtime.engines.vllm.caches import PLACEHOLDER_FOLDER, CacheCopy, caches, copy_caches, relocate

GRAPHS = "torch_compile_cache/KEY/rank_0_0/backbone"
INDEX = """{   ((1, 8192), 0, 'inductor_standalone'): {   'cache_key': 'abc',
                                               'graph_handle': (   'artifact_0',
                                                                   '/build/7.partial/%s/artifact_0')},
    ((1, 8192), 3, 'inductor_standalone'): {   'cache_key': None,
                                               'graph_handle': (   'artifact_3',
                                                                   '/build/7.partial/%s/artifact_3')}}"""


def built(folder: Path) -> Path:
    """A cache as vLLM and Triton leave it."""
    kernel = Path(caches(folder)["TRITON_CACHE_DIR"]) / "KEY"
    kernel.mkdir(parents=True)
    (kernel / "k.cubin").write_bytes(b"code")
    (kernel / "__grp__k.json").write_text(json.dumps({"child_paths": {"k.cubin": str(kernel / "k.cubin")}}))
    graphs = folder / GRAPHS
    graphs.mkdir(parents=True)
    (graphs / "vllm_compile_cache.py").write_text(INDEX % (GRAPHS, GRAPHS))
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_kernels_and_graphs_are_found_where_the_cache_was_copied_to(tmp_path: Path) -> None:
    source, served = built(tmp_path / "built"), tmp_path / "served"
    before = everything(source)
    copy_caches(source, served)
    moved = Path(caches(served)["TRITON_CACHE_DIR"]) / "KEY"
    group = json.loads((moved / "__grp__k.json").read_text())
    assert group == {"child_paths": {"k.cubin": str(moved / "k.cubin")}}
    assert (moved / "k.cubin").read_bytes() == b"code"
    index = ast.literal_eval((served / GRAPHS / "vllm_compile_cache.py").read_text())
    assert {key[1]: entry["graph_handle"] for key, entry in index.items()} == {
        0: ("artifact_0", str(served / GRAPHS / "artifact_0")),
        3: ("artifact_3", str(served / GRAPHS / "artifact_3")),
    }
    assert [entry["cache_key"] for entry in index.values()] == ["abc", None]
    assert everything(source) == before, "the artifact itself must stay as it is"


def test_an_artifact_s_cache_names_no_machine_s_folder_and_is_the_same_wherever_it_was_built(tmp_path: Path) -> None:
    one, other = built(tmp_path / "one"), built(tmp_path / "other")
    for folder in (one, other):
        relocate(folder, PLACEHOLDER_FOLDER)
    assert everything(one) == everything(other)
    assert not any(str(tmp_path).encode() in content or b"/build/" in content for content in everything(one).values())
    relocate(one, PLACEHOLDER_FOLDER)
    assert everything(one) == everything(other)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{(1, 2): {'cache_key': 'k'}}", "{1: {'graph_handle': None}}", "{1: {'graph_handle': ('a', '/x/b')}}"],
)
def test_a_list_that_is_not_as_vllm_writes_it_is_refused_by_name(tmp_path: Path, text: str) -> None:
    index = tmp_path / "vllm_compile_cache.py"
    index.write_text(text)
    with pytest.raises(ValueError, match=r"vllm_compile_cache\.py: expected vLLM's list of compiled graphs, found"):
        relocate(tmp_path, PLACEHOLDER_FOLDER)
    assert index.read_text() == text


def test_a_copy_is_named_while_it_lasts_and_a_variable_of_the_user_s_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    source = built(tmp_path / "built")
    before = everything(source)
    copy = CacheCopy(source)
    assert os.environ["VLLM_CACHE_ROOT"] == str(copy.folder)
    assert os.environ["TRITON_CACHE_DIR"] == "/mine"
    assert everything(copy.folder).keys() == before.keys()
    copy.remove()
    assert "VLLM_CACHE_ROOT" not in os.environ
    assert os.environ["TRITON_CACHE_DIR"] == "/mine"
    assert not copy.folder.exists()
    assert everything(source) == before


def test_nothing_is_left_of_a_copy_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    source = built(tmp_path / "built")
    (source / GRAPHS / "vllm_compile_cache.py").write_text("not a list")
    with pytest.raises(ValueError, match="expected vLLM's list of compiled graphs"):
        CacheCopy(source)
    assert not list((tmp_path / "temporary").iterdir())
    assert "VLLM_CACHE_ROOT" not in os.environ


def test_what_no_artifact_could_list_is_not_copied(tmp_path: Path) -> None:
    source = tmp_path / "cache"
    (source / ".x").mkdir(parents=True)
    (source / "ab").mkdir()
    for name in (".x/evil.so", "a.partial", "ab/.hidden", "ab/0.PARTIAL", "ab/entry"):
        (source / name).write_bytes(b"x")
    (source / "ab" / "link").symlink_to("/etc/hostname")
    (source / "folder").symlink_to("/etc")
    os.mkfifo(source / "ab" / "pipe")
    copy = CacheCopy(source)
    try:
        assert [path for path in copy.folder.rglob("*") if not path.is_dir()] == [copy.folder / "ab" / "entry"]
    finally:
        copy.remove()
