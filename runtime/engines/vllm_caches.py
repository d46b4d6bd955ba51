"""Where vLLM and Triton keep what they compile, and how it is carried from where it was compiled to where it serves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def caches(folder: Path) -> dict[str, str]:
    """The variables that put everything vLLM compiles into one folder."""
    return {"VLLM_CACHE_ROOT": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}


def copy_caches(folder: Path, to: Path) -> None:
    """Copy what `caches` put into a folder, so that it is found there as well.

    Triton lists the files of each kernel by absolute path (`FileCacheManager.put_group`) and passes over those that are
    elsewhere now: it would compile every kernel again.
    """
    shutil.copytree(folder, to, dirs_exist_ok=True)
    for group in to.rglob("__grp__*.json"):
        names = json.loads(group.read_text("utf-8"))["child_paths"]
        group.write_text(json.dumps({"child_paths": {name: str(group.parent / name) for name in names}}), "utf-8")
