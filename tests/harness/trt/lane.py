"""The TensorRT-LLM lane without TensorRT-LLM: the stand-in, a machine that has it, and a small model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from runtime.host import cuda, machine
from runtime.host.machine import Gpu, Machine
from tests.harness.models import tiny

STAND_IN = Path(__file__).parents[1] / "stand_in"
H200 = Machine(
    gpus=(Gpu("NVIDIA H200", 90, 141 << 30, 140 << 30),),
    driver="580.65.06",
    driver_cuda="13.0",
    torch_cuda="13.0",
    memory_bytes=256 << 30,
    packages={"tensorrt-llm": "1.2.1", "nvidia-modelopt": "0.37.0", "torch": "2.9.1+cu130"},
)
LABEL = "sm90_trt-llm-1.2.1_cuda13.0"

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}
END, STOP = 0, 255


def model(folder: Path, **config: object) -> Path:
    """Write a Hugging Face folder with a token for each byte, and weights that are never read."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.tokenizer(folder)
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [END, STOP], "pad_token_id": END}))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch, here: Machine = H200) -> Iterator[ModuleType]:
    """Put the stand-in on `sys.path` and its `trtllm-build` on the PATH, on a machine with a working GPU.

    All is undone together with what the test itself patches, last first. Undone here, what a test put over it would
    come back afterwards and stay for the tests that follow.
    """
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setenv("PATH", f"{STAND_IN / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(machine, "describe", lambda: here)
    monkeypatch.setattr(cuda, "probe", lambda: None)
    import tensorrt_llm._llm as stand_in

    stand_in.MADE.clear()
    try:
        yield stand_in
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
            del sys.modules[name]


def quantizer_python(folder: Path) -> Path:
    """Write an interpreter for the quantizer's worker that finds the stand-ins."""
    python = folder / "quantizer-python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{STAND_IN}:{STAND_IN / "worker"}" exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return python
