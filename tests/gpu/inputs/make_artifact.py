#!/usr/bin/env python3
"""Makes an artifact of a model folder for measuring, in place: compiled ahead as `build` does, and not validated.

    python3 tests/gpu/inputs/make_artifact.py FOLDER [--tool FOLDER] [--parallel GPUS] [--sequences N] [--uncompiled]
        [--chosen "full graphs"] [--method fp8]

A model with random weights has the speed of a real one and passes no gate of quality, so the pipeline would refuse
it, and rightly. `--chosen` seals it as if a candidate of `build --tune` had won, compiled for that one's options alone.
The metadata says `unproven` where figures would be; nothing made here is fit to be published.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pipeline.build.layout import COMPILE_CACHE
from pipeline.build.vllm import compile_ahead, ways
from pipeline.tuning.candidates import Situation, candidates
from runtime.artifact import (
    BuildMetadata,
    ChatModel,
    Gate,
    Limits,
    Platform,
    Quantization,
    Source,
    ToolModel,
    TriedOptions,
    TunedOptions,
    hashes,
)
from runtime.engines.tuned import key_of
from runtime.host import machine
from runtime.host.machine import Machine
from tests.hub.golden import proof_of

LIMITS = Limits(max_batch_size=256, max_input_len=5525, max_output_len=150, max_model_len=5808)


SCHEMES = {"none": "BF16", "fp8": "FP8", "awq": "W4A16"}


def chosen(name: str, method: str, limits: Limits, here: Machine) -> TunedOptions:
    """A candidate of the tuning as if it had won here."""
    sm = here.gpus[0].sm if here.gpus else None
    at = Situation(sm, method, limits.max_batch_size, limits.max_batch_size, limits.max_model_len)
    table = [one for one in candidates(at) if not one.not_tried]
    # As `tune.py --candidates` takes them: a name, or a part of one alone.
    found = [one for one in table if one.name == name] or [one for one in table if name in one.name]
    if len(found) != 1:
        known = "; ".join(one.name for one in table)
        sys.exit(f"--chosen: expected the name of one of these: {known or 'none, without a GPU'}; found {name}")
    choices = found[0].choices
    tried = TriedOptions(name=found[0].name, options=choices, outcome="won", reason="unproven")
    key = key_of(here, limits)
    return TunedOptions(goal="latency", key=key, choices=choices, noise=0.0, candidates=(tried,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tool", type=Path, help="a sequence classifier to serve beside it")
    parser.add_argument("--tool-tokens", type=int, default=512, help="the classifier's window")
    parser.add_argument("--uncompiled", action="store_true", help="seal it without a compile cache")
    parser.add_argument("--parallel", type=int, default=1, metavar="GPUS", help="GPUs that share the model")
    parser.add_argument("--sequences", type=int, default=LIMITS.max_batch_size, help="replies at once")
    parser.add_argument("--chosen", metavar="CANDIDATE", help="options of `build --tune` that it shall serve with")
    parser.add_argument("--method", default="none", choices=SCHEMES, help="how the folder's weights are quantized")
    arguments = parser.parse_args()
    folder = arguments.folder
    shape = {"tensor_parallel_size": arguments.parallel, "max_batch_size": arguments.sequences}
    limits = LIMITS.model_copy(update=shape)
    here = machine.describe()
    gpu = here.gpus[0] if here.gpus else None  # none where the scripts themselves are tried out
    tuned = chosen(arguments.chosen, arguments.method, limits, here) if arguments.chosen else None
    began = time.monotonic()
    if not arguments.uncompiled:
        # What is measured is the one way that it serves; `build` compiles for the plain options, too.
        compile_ahead(folder, ways(limits, tuned.choices if tuned else None)[-1:])
        print(f"compiled ahead in {time.monotonic() - began:.1f} s, the engine's whole start", flush=True)
    source = Source(repo="unproven", content_sha256="0" * 64)
    tool = None
    if arguments.tool:
        shutil.copytree(arguments.tool, folder / "tool")
        tool = ToolModel(source=source, max_tokens=arguments.tool_tokens)
    files = tuple(hashes.hash_folder(folder))
    digest = hashes.digest_of(files)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    metadata = BuildMetadata(
        lane="vllm" if gpu else "cpu",
        engine="vllm",
        created_at=now,
        chat=ChatModel(
            source=source,
            quantization=Quantization(method=arguments.method, scheme=SCHEMES[arguments.method]),
            limits=limits,
            dtype="bfloat16",
            compile_cache=None if arguments.uncompiled else COMPILE_CACHE,
            engine_options=tuned,
        ),
        tool=tool,
        platform=Platform(
            gpu_name=gpu.name if gpu else None,
            gpu_count=arguments.parallel if gpu else 0,
            sm=gpu.sm if gpu else None,
            driver=here.driver,
            cuda=here.torch_cuda,
            python=here.python,
            machine=here.processor,
            packages=here.packages,
        ),
        files=files,
        digest=digest,
    )
    # Nothing was measured: this artifact is for measuring speed, on a machine of one's own.
    unproven = Gate(name="unproven", value=0.0)
    metadata.model_copy(update={"validation": proof_of(metadata, unproven)}).write(folder)
    print(f"{folder}: {sum(entry.size for entry in files) / 1e9:.1f} GB, digest {digest[:12]}")


if __name__ == "__main__":
    main()
