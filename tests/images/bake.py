"""Building by `docker buildx bake`, as users do, on the stand-in base."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.images import stand_in

ROOT = Path(__file__).parents[2]
NAMES = "yap-test"
TAG = "test"


def variables() -> dict[str, str]:
    """What turns bake.hcl's bases into the stand-ins, and reaches the package indexes as this machine does."""
    wheels = next((place for place in os.environ.get("PIP_FIND_LINKS", "").split() if Path(place).is_dir()), None)
    bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or ""
    return {
        "BASE_DEVEL": stand_in.DEVEL,
        "BASE_RUNTIME": stand_in.RUNTIME,
        "PYTHON_VERSION": stand_in.PYTHON_VERSION,
        "MPI_VERSION_PIN": stand_in.MPI_VERSION,
        "NETWORK": "host",
        "REGISTRY": NAMES,
        "TAG": TAG,
        "CA_BUNDLE": bundle,
    } | ({"WHEELS": wheels} if wheels else {})


def printed(*targets: str, **given: str) -> dict:
    """What bake would build."""
    done = command("--print", *targets, **given)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def command(*arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
    """Bake with these variables over the environment's."""
    return subprocess.run(
        ["docker", "buildx", "bake", "-f", "bake.hcl", *arguments],
        cwd=ROOT,
        env=os.environ | given,
        capture_output=True,
        text=True,
        check=False,
    )


def build(*targets: str, **given: str) -> None:
    """Build and load the targets on the stand-in base."""
    chosen = variables() | given
    readable = [
        value for name in ("CA_BUNDLE", "WHEELS", "ARTIFACT") if Path(value := chosen.get(name, "")).is_absolute()
    ]
    allowed = [f"--allow=fs.read={path}" for path in readable]
    done = command("--allow=network.host", *allowed, "--progress=plain", *targets, **chosen)
    assert done.returncode == 0, f"bake {' '.join(targets)} exited {done.returncode}:\n{done.stderr[-6000:]}"


def name(target: str) -> str:
    """The image that a target makes here."""
    return f"{NAMES}/{target}:{TAG}"
