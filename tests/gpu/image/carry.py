#!/usr/bin/env python3
"""Builds `runtime-vllm` and packs its root file system for a GPU host that reaches no registry, in pieces.

    python tests/gpu/image/carry.py --tokenizer artifacts/demo [--image NAME] [--out .gpu] [--level 9] [--sm 90]

NVIDIA's base image may be out of reach: the base is then the image tests' Debian, with libcudart as NVIDIA's package on
PyPI has it. `--image` packs an image that is there already. Each piece's folder has a `take.sh` that moves the piece to
/tmp/img on the host; `prove.py` goes on from there. With `--sm`, kernels for other GPUs are blanked first (kernels.py),
which takes away more than a third.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.gpu.image import kernels, pieces, zstd
from tests.images import stand_in

NAMES = "yap-gpu"
IMAGE = f"{NAMES}/runtime-vllm:dev"
CUDART = "nvidia-cuda-runtime"
TOKENIZER = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
UNPACK = """#!/usr/bin/env bash
# `bash take.sh` in each piece's folder, in any order, keeps the piece; tests/gpu/image/prove.py unpacks all of them.
here=$(dirname "$0") pieces=${PIECES:-/tmp/img}
mkdir -p "$pieces" && find "$here" -mindepth 1 -maxdepth 1 ! -name take.sh -exec mv -t "$pieces" {} +
"""


def base(kind: str) -> str:
    """Return the name of a base image that stands in for NVIDIA's."""
    return f"{NAMES}/cuda-13.0:{kind}"


def make_bases() -> None:
    """Make the bases: the image tests', with NVIDIA's libcudart instead of one that tells its version alone."""
    if all(stand_in.exists(base(kind)) for kind in ("runtime", "devel")):
        return
    lock = (ROOT / "images/locks/vllm.txt").read_text("utf-8")
    versions = re.findall(rf"^{CUDART}==(13\.0\.\S+)", lock, re.MULTILINE)
    stand_in.make_debian()
    with tempfile.TemporaryDirectory() as name:
        context = Path(name)
        for folder in ("wheel", "source", "runtime", "devel"):
            (context / folder).mkdir()
        command = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        stand_in.run(*command, "--dest", str(context / "wheel"), f"{CUDART}=={versions[0]}")
        (wheel,) = (context / "wheel").iterdir()
        with zipfile.ZipFile(wheel) as archive:
            library = archive.read("nvidia/cu13/lib/libcudart.so.13")
        for package in stand_in.cuda_13(library):
            package.build(context / "runtime")
        for package in stand_in.toolkit_13():
            package.build(context / "devel")
        (context / "source" / "Packages").touch()
        (context / "Dockerfile").write_text(stand_in.DOCKERFILE.format(debian=stand_in.DEBIAN))
        for stage in ("runtime", "devel"):
            target = ["--target", stage, "--tag", base(stage), str(context)]
            stand_in.run("docker", "buildx", "build", "--quiet", "--load", *target)


def bake(*arguments: str) -> None:
    """Bake on these bases."""
    bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or ""
    variables = {
        "BASE_DEVEL": base("devel"),
        "BASE_RUNTIME": base("runtime"),
        "PYTHON_VERSION": stand_in.PYTHON_VERSION,
        "MPI_VERSION_PIN": stand_in.MPI_VERSION,
        "NETWORK": "host",
        "REGISTRY": NAMES,
        "CA_BUNDLE": bundle,
    }
    allowed = ["--allow=network.host", *([f"--allow=fs.read={bundle}"] if bundle else [])]
    command = ["docker", "buildx", "bake", "-f", "bake.hcl", *allowed, "--progress=plain", *arguments]
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True)


def build() -> None:
    """Build the image; what the installer kept of its packages goes before the image itself needs the disk."""
    make_bases()
    bake("serving-vllm", "--set", "serving-vllm.output=type=cacheonly")
    subprocess.run(["docker", "buildx", "prune", "--force", "--filter", "type=exec.cachemount"], check=True)
    bake("runtime-vllm")


def only_for(sm: int, export: BinaryIO) -> BinaryIO:
    """Return the stream without other GPUs' kernels, as a thread of its own writes it."""
    reader, writer = os.pipe()

    def work() -> None:
        with os.fdopen(writer, "wb") as target:
            told = kernels.blanked(export, target, sm)
        print(f"kernels for other GPUs than sm_{sm}: {sum(told.values()) >> 20} MiB in {len(told)} files blanked")
        for name, zeros in sorted(told.items(), key=lambda pair: -pair[1])[:20]:
            print(f"  {zeros >> 20:5} MiB  {name}")

    threading.Thread(target=work, name="kernels").start()
    return os.fdopen(reader, "rb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", help=f"an image that is there; else {IMAGE} is built")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder whose tokenizer is carried along")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu")
    parser.add_argument("--level", type=int, default=9, help="of Zstandard, 1 to 22")
    parser.add_argument("--sm", type=int, help="the one architecture whose kernels are kept, such as 90")
    arguments = parser.parse_args()
    out: Path = arguments.out
    image = arguments.image or IMAGE
    if not arguments.image:
        build()
    (config,) = json.loads(stand_in.run("docker", "image", "inspect", image))
    for old in out.glob("img*"):
        shutil.rmtree(old)

    def place(number: int) -> Path:
        folder = out / f"img{number:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "take.sh").write_text(UNPACK, "utf-8")
        return folder

    began = time.monotonic()
    container = stand_in.run("docker", "create", image).strip()
    try:
        with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as export:
            assert export.stdout is not None
            stream = only_for(arguments.sm, export.stdout) if arguments.sm else export.stdout
            count = pieces.pack(stream, place, level=arguments.level)
        if export.returncode:
            sys.exit(f"carry.py: docker export exited {export.returncode}")
    finally:
        stand_in.run("docker", "rm", "--volumes", container)
    first = place(0)
    (first / "image.json").write_text(json.dumps({"id": config["Id"], "config": config["Config"]}), "utf-8")
    shutil.copy(next(Path("/usr/lib").rglob(zstd.LIBRARY)), first)
    (first / "tokenizer").mkdir()
    for name in TOKENIZER:
        if (arguments.tokenizer / name).exists():
            shutil.copy(arguments.tokenizer / name, first / "tokenizer")
    packed = sum(path.stat().st_size for path in out.glob("img*/piece*"))
    print(f"{count} pieces, {packed >> 20} MiB, in {out}, packed in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
