"""Each image's size by layer, against its budget: `make images-size`. Exit status 1 when one is over."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import docker

MIB = 1 << 20


def budgets(file: Path) -> dict[str, int]:
    """MiB by image name, as `budget.txt` lists them."""
    lines = file.read_text("utf-8").splitlines()
    rows = (line.split() for line in lines if line.strip() and not line.startswith("#"))
    return {name: int(mib) for name, mib in rows}


def layers(image: Any) -> list[tuple[int, str]]:  # noqa: ANN401 - the SDK has no types
    """Size in bytes and what made it, largest first."""
    history = ((int(entry["Size"]), str(entry["CreatedBy"])) for entry in image.history())
    return sorted(((size, made) for size, made in history if size), reverse=True)


def main() -> None:
    """Print every image that is here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--registry", default="yap")
    parser.add_argument("--tag", default="dev")
    parser.add_argument("--budget", type=Path, default=Path(__file__).parent / "budget.txt")
    arguments = parser.parse_args()
    try:
        client = docker.from_env()
    except docker.errors.DockerException as error:
        sys.exit(f"sizes: expected a Docker Engine, found none: {error}")
    over = []
    for name, budget in budgets(arguments.budget).items():
        try:
            image = client.images.get(f"{arguments.registry}/{name}:{arguments.tag}")
        except docker.errors.ImageNotFound:
            print(f"{name}: not built")
            continue
        size = sum(size for size, _ in layers(image))
        print(f"{name}: {size / MIB:.0f} MiB of {budget}")
        for layer, made in layers(image):
            if layer >= MIB:
                print(f"  {layer / MIB:6.0f}  {' '.join(made.split())[:100]}")
        if size > budget * MIB:
            over.append(f"{name}: expected at most {budget} MiB, found {size / MIB:.0f}")
    client.close()
    for line in over:
        print(f"sizes: {line}", file=sys.stderr)
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left would fail again when the interpreter ends
        sys.exit(f"sizes: {error}")
