"""Whether an artifact fits this machine: GPU architecture, driver and CUDA, the engine's version, limits, memory."""

from __future__ import annotations

from runtime.artifact import ArtifactError, BuildMetadata
from runtime.artifact.checks.sharing import AS_BUILT, Sharing, check_gpus
from runtime.artifact.files.kinds import is_weights
from runtime.artifact.lanes import engine_of, lane_of
from runtime.defaults import MINIMUM_DRIVER, MINIMUM_SHM_MIB
from runtime.host.machine import Machine


def check_machine(metadata: BuildMetadata, machine: Machine, sharing: Sharing = AS_BUILT) -> None:
    """Compare GPU architecture, driver, CUDA and engine version with those that the artifact was proven on.

    Where several GPUs share the model, there must be as many here, and all alike.
    """
    built, engine = metadata.platform, engine_of(metadata)
    remedy = engine.remedy
    if metadata.chat is not None and built.sm != machine.sm:
        expected = f"GPU architecture sm{built.sm} ({built.gpu_name})" if built.sm else "a machine without a GPU"
        found = f"sm{machine.sm} ({machine.gpus[0].name})" if machine.gpus else "no GPU"
        raise ArtifactError(f"expected {expected}, found {found}; {remedy}")
    if metadata.chat is not None and machine.gpus:
        check_gpus(sharing.of(metadata.chat.limits), machine.gpus)
    if machine.gpus:
        check_driver(machine)
        if engine.compiled and _major(built.cuda) != _major(machine.torch_cuda):
            raise ArtifactError(f"expected CUDA {built.cuda}, found {machine.torch_cuda}; {remedy}")
    if metadata.chat is not None:
        _check_engine_version(metadata, machine, remedy)


def check_driver(machine: Machine) -> None:
    """Refuse a driver too old for CUDA 13."""
    branch = (machine.driver or "").partition(".")[0]
    if branch.isdigit() and int(branch) < MINIMUM_DRIVER:
        raise ArtifactError(
            f"expected NVIDIA driver {MINIMUM_DRIVER} or newer (CUDA 13), found {machine.driver}; "
            "update the driver on the host"
        )


def _check_engine_version(metadata: BuildMetadata, machine: Machine, remedy: str) -> None:
    names = lane_of(metadata).packages
    built = next((metadata.platform.packages[n] for n in names if n in metadata.platform.packages), None)
    found = next((machine.packages[n] for n in names if n in machine.packages), None)
    if found is None:
        raise ArtifactError(
            f"expected {names[0]} {built} for the {metadata.lane} lane, found none; "
            f"use the runtime-{metadata.lane} image"
        )
    # A compiled engine binds to the exact version; for vLLM a patch release keeps formats and kernels.
    same = built == found if engine_of(metadata).compiled else _minor(built) == _minor(found)
    if not same:
        raise ArtifactError(f"expected {names[0]} {built}, found {found}; use the matching image or {remedy}")


def check_limits(metadata: BuildMetadata, batch_size: int | None) -> None:
    """Refuse a batch size above the baked one."""
    if metadata.chat is None or batch_size is None:
        return
    baked = metadata.chat.limits.max_batch_size
    if batch_size > baked:
        raise ArtifactError(
            f"expected a batch size of at most {baked} (baked into the artifact), found {batch_size}; "
            f"lower it or build with a larger maximum"
        )


def check_memory(metadata: BuildMetadata, machine: Machine, gpu_fraction: float, sharing: Sharing = AS_BUILT) -> None:
    """Refuse weights that cannot fit into the memory the engine may use, on each of the GPUs that share them."""
    tool = metadata.tool.path + "/" if metadata.tool else None
    weights = sum(
        entry.size for entry in metadata.files if is_weights(entry.path) and not (tool and entry.path.startswith(tool))
    )
    if metadata.chat is None or not weights:
        return
    if not machine.gpus:
        _check_room(weights, machine.memory_bytes, "this machine's memory")
        return
    limits = sharing.of(metadata.chat.limits)
    gpus = machine.gpus[: limits.gpus]
    if len(gpus) > 1 and 0 < machine.shared_bytes < MINIMUM_SHM_MIB << 20:
        raise ArtifactError(
            f"expected {MINIMUM_SHM_MIB} MiB of shared memory (/dev/shm) for {len(gpus)} GPUs' processes, "
            f"found {machine.shared_bytes >> 20}; run the container with --shm-size 1g"
        )
    for number, gpu in enumerate(gpus):
        which = f"GPU {number}'s" if len(gpus) > 1 else "the GPU's"
        room, share = int(gpu.memory_bytes * gpu_fraction), weights // limits.gpus
        _check_room(share, room, f"{gpu_fraction:.0%} of {which} memory")
        if gpu.free_bytes <= share:
            raise ArtifactError(
                f"expected room for {share / 2**30:.1f} GiB of weights, found {gpu.free_bytes / 2**30:.1f} GiB of "
                f"{which} memory free; end what else uses it"
            )


def _check_room(weights: int, room: int, where: str) -> None:
    if room and weights >= room:
        raise ArtifactError(
            f"expected room for {weights / 2**30:.1f} GiB of weights, "
            f"found {room / 2**30:.1f} GiB ({where}); use a larger GPU, more GPUs or a smaller format"
        )


def _major(version: str | None) -> str | None:
    return version.partition(".")[0] if version else None


def _minor(version: str | None) -> tuple[str, ...] | None:
    return tuple(version.partition("+")[0].split(".")[:2]) if version else None
