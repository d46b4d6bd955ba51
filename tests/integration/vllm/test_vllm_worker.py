"""A compile cache is found wherever the artifact lies."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.engines import EngineOptions
from runtime.engines.vllm.arguments import engine_arguments, prepare_environment

pytestmark = pytest.mark.engine

OPTIONS = EngineOptions(max_model_len=2048, max_num_seqs=16)


def key(folder: Path, options: EngineOptions = OPTIONS) -> str:
    """The compile cache's key, in a process that has what a worker imports."""
    import runtime.engines.vllm.worker  # noqa: F401

    prepare_environment(options)
    return engine_arguments(folder, options).create_engine_config().compute_hash()


def test_the_compile_cache_is_keyed_by_the_model_and_not_by_its_place(chat_folder: Path, tmp_path: Path) -> None:
    copies = [tmp_path / "built" / "here", tmp_path / "served"]
    for copy in copies:
        shutil.copytree(chat_folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    assert key(copies[0]) == key(copies[1])
    assert key(copies[0]) == key(copies[1], replace(OPTIONS, gpu_fraction=0.5))
    assert key(copies[0]) != key(copies[1], replace(OPTIONS, max_model_len=1024))
    file = copies[1] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.5}))
    assert key(copies[0]) != key(copies[1])
