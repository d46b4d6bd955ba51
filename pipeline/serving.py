"""Becomes the runtime: the last step of `yap-pipeline serve`."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import typer

from runtime import defaults
from runtime.artifact import BuildMetadata

KEYS = ("TEXT_API_KEY", "TEXT_API_KEY_FILE")
# For somebody who tries a model on a machine of their own; variables that are set win.
TRYING = {"HOST": "127.0.0.1", "PLAYGROUND": "1"}


def server_environment(place: Path, metadata: BuildMetadata, environment: Mapping[str, str]) -> dict[str, str]:
    """The runtime's variables: what is served, and for what nobody said anything, values to try it with.

    Args:
        place: the artifact.
        metadata: the artifact's.
        environment: the variables of this process.
    """
    given = {name: value for name, value in environment.items() if value}
    wanted = {"LOG_FORMAT": "console"} if sys.stdout.isatty() else {}
    made = {**environment, **{name: value for name, value in {**TRYING, **wanted}.items() if name not in given}}
    if not any(name in given for name in KEYS):
        made["TEXT_API_KEY"] = secrets.token_urlsafe(12)
    return {**made, "ARTIFACT": str(place.resolve()), "INFERENCE_ENGINE": metadata.lane}


def become_server(place: Path, metadata: BuildMetadata, environment: Mapping[str, str] = os.environ) -> NoReturn:
    """Say where it will listen and with which key, then replace this process by the runtime."""
    made = server_environment(place, metadata, environment)
    address = f"{made['HOST']}:{made.get('PORT') or defaults.PORT}"
    own_key = not any(environment.get(name) for name in KEYS)
    typer.echo(f"\nserving {place} at ws://{address}/ws; Ctrl-C lets running turns end")
    if made["PLAYGROUND"].strip().lower() in {"1", "true", "yes", "on"}:
        typer.echo(f"a page to try it: http://{address}/" + (f"   key: {made['TEXT_API_KEY']}" if own_key else ""))
    elif own_key:
        typer.echo(f"key: {made['TEXT_API_KEY']}")
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "runtime"], made)  # noqa: S606 - our own program, without a shell on purpose
