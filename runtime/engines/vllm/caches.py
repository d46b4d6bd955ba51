"""The compile caches of vLLM and Triton, and how they move from where they were filled to where they serve.

Both write absolute paths into their caches. Triton passes over a file that is not where it is said to be, and compiles
again; vLLM ends with an error, and its engine does not start. From torch 2.10 on vLLM also keeps the whole model as it
was traced and compiled (`torch_aot_compile/KEY/rank_…/model`); that file names no folder and moves as it is. vLLM says
"torch.compile took" of loading it too.

All of it is code: what vLLM finds is unpickled, and what Triton finds runs on the GPU. So nothing is taken but what the
artifact's digest covers, and that only where the artifact's signature was checked or the operator trusts it
(`runtime.artifact.files.view`).
"""

from __future__ import annotations

import ast
import json
import os
import pprint
import shutil
import stat
import tempfile
from pathlib import Path

from runtime.artifact.files.paths import path_problem
from runtime.engines.vllm.contract import GRAPH_FIELD, GRAPH_LIST, seams

# Stands for the cache's folder in an artifact, which names no machine's.
PLACEHOLDER_FOLDER = Path("/compile_cache")


def caches(folder: Path) -> dict[str, str]:
    """The variables that put everything vLLM compiles into one folder."""
    return {"VLLM_CACHE_ROOT": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}


def copy_caches(folder: Path, to: Path) -> None:
    """Copy what `caches` put into a folder, so that it is found there as well.

    Whatever an artifact could not list is left: its readers unpickle every file of a folder, whatever it is called.
    """
    shutil.copytree(folder, to, dirs_exist_ok=True, ignore=_never_listed)
    relocate(to, to)


def _never_listed(folder: str, names: list[str]) -> list[str]:
    def listable(name: str) -> bool:
        mode = (Path(folder) / name).lstat().st_mode
        return path_problem(name) is None and (stat.S_ISREG(mode) or stat.S_ISDIR(mode))

    return [name for name in names if not listable(name)]


def copy_of(folder: Path) -> CacheCopy | None:
    """An artifact's caches, where vLLM may write; none when they are not as the versions known to us write them."""
    try:
        return CacheCopy(folder)
    except ValueError as error:
        seams.give_up("cache format", str(error))
        return None


class CacheCopy:
    """A copy of an artifact's caches that vLLM may write to, in a temporary folder; this process's variables name it.

    Raises:
        ValueError: caches that are not as the versions known to us write them; nothing is left of the copy.
    """

    def __init__(self, source: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="yap-vllm-cache-"))
        self._set_here: dict[str, str] = {}
        try:
            copy_caches(source, self.folder)
        except BaseException:
            self.remove()
            raise
        self._set_here = {name: value for name, value in caches(self.folder).items() if name not in os.environ}
        os.environ.update(self._set_here)

    def remove(self) -> None:
        """Delete it, and the variables that it set."""
        for name in self._set_here:
            os.environ.pop(name, None)
        shutil.rmtree(self.folder, ignore_errors=True)


def relocate(folder: Path, becomes: Path) -> None:
    """Write every path in a cache's lists as if the cache lay at `becomes`.

    Raises:
        ValueError: a list that is not as the versions known to us write it.
    """
    for group in folder.rglob("__grp__*.json"):
        _rewrite_triton(group, becomes / group.parent.relative_to(folder))
    for index in folder.rglob(GRAPH_LIST):
        _rewrite_vllm(index, becomes / index.parent.relative_to(folder))


def _rewrite_triton(group: Path, home: Path) -> None:
    """The files of one kernel (`triton.runtime.cache.FileCacheManager.put_group`), all in the folder of the list."""
    names = json.loads(group.read_text("utf-8"))["child_paths"]
    group.write_text(json.dumps({"child_paths": {name: str(home / name) for name in names}}), "utf-8")


def _rewrite_vllm(index: Path, home: Path) -> None:
    """The compiled graphs (`vllm.compilation.backends.CompilerManager`), each in a file beside the list.

    An entry's handle is the file's name and its path (`InductorStandaloneAdaptor`). Newer versions keep the graphs
    elsewhere, in one file without paths, and have no entries here.
    """
    try:
        entries = ast.literal_eval(index.read_text("utf-8"))
        for entry in entries.values():
            name, path = entry[GRAPH_FIELD]
            if Path(path).name != name:
                raise ValueError(f"a graph named {name} at {path}")
            entry[GRAPH_FIELD] = (name, str(home / name))
    except (ValueError, TypeError, KeyError, SyntaxError, AttributeError) as error:
        raise ValueError(
            f"{index}: expected vLLM's list of compiled graphs, found {error}; rebuild with this vLLM"
        ) from error
    # As vLLM writes it, so that a cache that was relocated twice is the same as one relocated once.
    index.write_text(pprint.PrettyPrinter(indent=4).pformat(entries), "utf-8")
