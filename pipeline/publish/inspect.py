"""Shows a finished artifact: its metadata for a person or as JSON, and its files against their hashes."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pipeline.publish.report import show_artifact
from runtime import artifact
from runtime.artifact import hashes


def inspect(folder: Path, console: Console, *, as_json: bool, verify: bool) -> None:
    """Print an artifact's metadata, and check every file when `verify`.

    Raises:
        ArtifactError: it cannot be read, or a file differs from what the metadata says.
    """
    metadata = artifact.read(folder)
    if verify:
        hashes.verify_files(folder, metadata)  # first, so that nothing is shown of what is refused
    if as_json:
        console.print_json(metadata.model_dump_json())
    else:
        show_artifact(metadata, console)
        if verify:
            console.print(f"\nAll {len(metadata.files)} files match their hashes.", highlight=False)
