"""Shows a finished artifact: its metadata for a person or as JSON, and its files against their hashes."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pipeline.publish.reports.artifact_report import show_artifact
from runtime import artifact
from runtime.artifact import hashes
from runtime.engines.tuned import told_here
from runtime.host import machine


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
        tuned = metadata.chat and metadata.chat.tuned
        # The driver is asked only where there is something to compare.
        here = told_here(metadata.chat, machine.describe()) if metadata.chat and tuned else ()
        show_artifact(metadata, console, here)
        if verify:
            console.print(f"\nAll {len(metadata.files)} files match their hashes.", highlight=False)
