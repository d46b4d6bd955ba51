"""Whether an artifact may be served on this machine: the checks, in their order, before a weight is touched.

schema → what may be in it → digest → signature → validation → GPU architecture → driver and CUDA → versions → limits →
memory. Each refusal is one line that says what was expected, what was found, and what to do.
"""

from __future__ import annotations

from pathlib import Path

from runtime import artifact
from runtime.artifact import BuildMetadata, hashes, signature
from runtime.artifact.checks.contents import check_contents
from runtime.artifact.checks.gates import check_validation
from runtime.artifact.checks.machine_fit import check_limits, check_machine, check_memory
from runtime.artifact.checks.sharing import AS_BUILT as AS_BUILT
from runtime.artifact.checks.sharing import Sharing as Sharing
from runtime.artifact.hashes import Take
from runtime.defaults import GPU_ALONE
from runtime.host.machine import Machine


def check_artifact(
    folder: Path,
    machine: Machine,
    *,
    batch_size: int | None = None,
    gpu_fraction: float = GPU_ALONE,
    public_key: Path | None = None,
    take: Take = hashes.sha256_of_open,
    sharing: Sharing = AS_BUILT,
) -> BuildMetadata:
    """Run every check and return the metadata of an artifact that may be loaded.

    Args:
        folder: the artifact.
        machine: this machine.
        batch_size: sequences that the server wants to run at once; none takes the baked limit.
        gpu_fraction: part of the GPU's memory that the chat engine may use.
        public_key: when given, an artifact that was not signed with its private key is refused.
        take: reads each file; a `View`'s keeps what it read.
        sharing: how many GPUs shall share the model.

    Raises:
        ArtifactError: the first check that failed.
    """
    metadata = check_proven(folder, public_key, take)
    check_machine(metadata, machine, sharing)
    check_limits(metadata, batch_size)
    check_memory(metadata, machine, gpu_fraction, sharing)
    return metadata


def check_proven(folder: Path, public_key: Path | None = None, take: Take = hashes.sha256_of_open) -> BuildMetadata:
    """Run the checks that ask nothing of this machine: the artifact is whole, signed if it must be, and proven.

    Raises:
        ArtifactError: the first check that failed.
    """
    metadata = artifact.read(folder)
    check_contents(metadata)
    hashes.verify_files(folder, metadata, take)
    if public_key is not None:
        signature.verify(folder, metadata, public_key)
    check_validation(metadata)
    return metadata
