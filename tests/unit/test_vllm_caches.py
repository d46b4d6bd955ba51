"""Compile caches that move with an artifact."""

from __future__ import annotations

import json
from pathlib import Path

from runtime.engines.vllm_caches import caches, copy_caches


def test_tritons_kernels_are_found_where_the_cache_was_copied_to(tmp_path: Path) -> None:
    built, served = tmp_path / "built", tmp_path / "served"
    kernel = Path(caches(built)["TRITON_CACHE_DIR"]) / "KEY"
    kernel.mkdir(parents=True)
    (kernel / "k.cubin").write_bytes(b"code")
    (kernel / "__grp__k.json").write_text(json.dumps({"child_paths": {"k.cubin": str(kernel / "k.cubin")}}))
    copy_caches(built, served)
    moved = Path(caches(served)["TRITON_CACHE_DIR"]) / "KEY"
    group = json.loads((moved / "__grp__k.json").read_text())
    assert group == {"child_paths": {"k.cubin": str(moved / "k.cubin")}}
    assert (moved / "k.cubin").read_bytes() == b"code"
    assert str(kernel) in (kernel / "__grp__k.json").read_text(), "the artifact itself must stay as it is"
