"""Whether an artifact may be served on this machine: the checks, in their order, before a weight is touched.

schema → what may be in it → digest → signature → validation → GPU architecture → driver and CUDA → versions → limits →
memory. Each refusal is one line that says what was expected, what was found, and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime import artifact
from runtime.artifact import ArtifactError, BuildMetadata, Limits, hashes, signature
from runtime.artifact.files.kinds import is_pickle, is_weights
from runtime.artifact.files.paths import lies_in
from runtime.artifact.hashes import Take
from runtime.artifact.lanes import LONG_PROMPT_TOKENS, engine_of, lane_of
from runtime.artifact.schema.proof import Gate, Relation
from runtime.artifact.schema.tool_model import SCREENSHOT_TOOL
from runtime.defaults import GPU_ALONE, MINIMUM_DRIVER, MINIMUM_SHM_MIB, first_set
from runtime.host.machine import Gpu, Machine

# Of one kind of GPU, no two that work have less in common than this part of their memory: a driver may take some.
ALIKE = 0.95


@dataclass(frozen=True, slots=True)
class Sharing:
    """How many GPUs shall share the model, where the operator says so; none leaves the artifact's number.

    Attributes:
        tensor: GPUs that share every layer.
        pipeline: stages of layers.
    """

    tensor: int | None = None
    pipeline: int | None = None

    def of(self, limits: Limits) -> Limits:
        """An artifact's limits with these numbers in place of its own."""
        tensor = first_set(self.tensor, default=limits.tensor_parallel_size)
        stages = first_set(self.pipeline, default=limits.pipeline_parallel_size)
        return limits.model_copy(update={"tensor_parallel_size": tensor, "pipeline_parallel_size": stages})


AS_BUILT = Sharing()


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


def check_contents(metadata: BuildMetadata) -> None:
    """Refuse folders that hold none of the listed files or hold one another, and files that run when they are read."""
    chat, tool = metadata.chat, metadata.tool
    if chat is None and tool is None:
        raise ArtifactError("expected a chat model, a classifier or both, found neither; build the artifact again")
    named = {
        "tool.path": tool.path if tool else None,
        "chat.engine_path": chat.engine_path if chat else None,
        "chat.compile_cache": chat.compile_cache if chat else None,
    }
    folders = {field: path for field, path in named.items() if path is not None}
    again = "build the artifact again"
    for field, path in folders.items():
        if not any(lies_in(entry.path, path) for entry in metadata.files):
            raise ArtifactError(f"{field}: expected listed files in {path}, found none; {again}")
        for other, inner in folders.items():
            if field != other and f"{inner}/".startswith(f"{path}/"):
                raise ArtifactError(f"{other}: expected a folder apart from {field}, found {inner} in {path}; {again}")
    if chat is not None and engine_of(metadata).compiled:
        _check_ranks(metadata, chat.engine_path, chat.limits.gpus)
    cache = folders.get("chat.compile_cache")
    for entry in metadata.files:
        if is_pickle(entry.path) and not (cache and lies_in(entry.path, cache)):
            raise ArtifactError(
                f"{entry.path}: expected weights in safetensors, found a file that runs code when it is read; {again}"
            )


def _check_ranks(metadata: BuildMetadata, engine: str | None, gpus: int) -> None:
    """Refuse a compiled engine that has not one file for each GPU."""
    folder = f"{engine}/" if engine else ""
    named = {entry.path for entry in metadata.files if re.fullmatch(re.escape(folder) + r"rank\d+\.engine", entry.path)}
    wanted = {f"{folder}rank{rank}.engine" for rank in range(gpus)}
    if named != wanted:
        odd = sorted(named ^ wanted)[0]
        raise ArtifactError(
            f"expected rank0.engine to rank{gpus - 1}.engine for {gpus} GPUs, "
            f"found {'none' if odd in wanted else 'also'} {odd}; build the artifact again"
        )


def expected_gates(metadata: BuildMetadata) -> dict[str, Relation | None]:
    """The gates that prove an artifact, each with how its figure must stand to a bound; none for one that has no bound.

    What they are depends on what the artifact holds, not on what was written down: a gate that was left out would pass.
    """
    expected: dict[str, Relation | None] = {"files_verified": None}
    if (chat := metadata.chat) is not None:
        expected |= {"known_prompts": ">=", "replies_end": ">=", "held_out_tokens": None}
        expected |= {"ttft_p50": "<=", "itl_p50": "<=", "throughput": ">="}
        if chat.limits.max_input_len > LONG_PROMPT_TOKENS:
            expected["long_prompt_ratio"] = ">="
        if chat.tuned:
            expected |= {"text_under_load": "<=", "text_under_load_worst": "<="}
        told, compared = engine_of(metadata).tells_probabilities, not chat.quantization.prequantized
        if told:
            expected["perplexity"] = None
        if compared:
            expected |= {"top1_agreement": ">=", **({"perplexity_ratio": "<="} if told else {})}
    if (tool := metadata.tool) is not None:
        unmeasured = set(metadata.validation.not_measured) if metadata.validation else set()
        for entry in tool.served_tools:
            accuracy = f"tool_accuracy:{entry.name}"
            # The screenshot can be measured always.
            silent = accuracy in unmeasured and entry.name != SCREENSHOT_TOOL
            whole = "tool_silence" if silent else "tool_accuracy"
            expected[whole] = ">="
            if tool.tools:
                expected[f"{whole}:{entry.name}"] = ">="
    return expected


# Figures that are a part of something, by the name before a tool's.
PARTS = frozenset({"known_prompts", "replies_end", "top1_agreement", "tool_accuracy", "tool_silence"})


def figure_problem(gate: Gate) -> str | None:
    """What a gate's figure cannot be, whatever was measured; none where it can.

    >>> from runtime.artifact.schema.proof import Gate
    >>> figure_problem(Gate(name="known_prompts", value=7))
    'at most 1'
    """
    if gate.name.partition(":")[0] in PARTS and gate.value > 1:
        return "at most 1"
    if gate.name in {"files_verified", "held_out_tokens"} and gate.value < 1:
        return "at least 1: of nothing nothing was measured"
    if gate.name == "perplexity" and gate.value < 1:
        return "at least 1, that of a model that is sure and right everywhere"
    if gate.name == "perplexity_ratio" and gate.value == 0:
        return "more than 0"
    return None


def gate_problem(metadata: BuildMetadata) -> str | None:
    """What an artifact's gates lack to prove it: one that failed, or one that should be there; none where nothing."""
    validation = metadata.validation
    if validation is None:
        return "expected a validated artifact, found no validation"
    for gate in validation.gates:
        if not gate.passed:
            bound = (
                f"must be {gate.relation} {gate.threshold:g}"
                if gate.threshold is not None
                else "must be a number from 0 on"
            )
            return f"expected an artifact that passed its gates, found {gate.name} = {gate.value:g} ({bound})"
        if possible := figure_problem(gate):
            return f"expected {gate.name} to be {possible}, found {gate.value:g}"
    for name, relation in expected_gates(metadata).items():
        found = [gate for gate in validation.gates if gate.name == name]
        if len(found) != 1:
            return f"expected the gate {name} once among what was measured, found it {len(found)} times"
        if relation is not None and found[0].relation != relation:
            return f"expected a bound ({relation}) of the gate {name}, found {found[0].relation or 'none'}"
    return None


def check_validation(metadata: BuildMetadata) -> None:
    """Refuse what was never proven, what failed, what was not measured, and what changed after it was proven."""
    validation = metadata.validation
    if validation is None:
        raise ArtifactError("expected a validated artifact, found no validation; run `yap-pipeline validate`")
    if problem := gate_problem(metadata):
        remedy = "build it with another method" if not validation.passed else "prove it with `yap-pipeline validate`"
        raise ArtifactError(f"{problem}; {remedy}")
    if validation.digest != metadata.digest:
        raise ArtifactError("the files changed after validation; run `yap-pipeline validate` again")


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
        _check_gpus(sharing.of(metadata.chat.limits), machine.gpus)
    if machine.gpus:
        check_driver(machine)
        if engine.compiled and _major(built.cuda) != _major(machine.torch_cuda):
            raise ArtifactError(f"expected CUDA {built.cuda}, found {machine.torch_cuda}; {remedy}")
    if metadata.chat is not None:
        _check_engine_version(metadata, machine, remedy)


def _check_gpus(limits: Limits, gpus: tuple[Gpu, ...]) -> None:
    """Refuse fewer GPUs than share the model, and those that are not alike."""
    if len(gpus) < limits.gpus:
        raise ArtifactError(
            f"expected {_shared_by(limits)}, found {len(gpus)}; give the server as many of this host's, or set "
            "TENSOR_PARALLEL_SIZE lower"
        )
    if odd := unlike(gpus[: limits.gpus]):
        raise ArtifactError(
            f"expected {_shared_by(limits)} that are alike, found {odd}; choose others with CUDA_VISIBLE_DEVICES"
        )


def unlike(gpus: Sequence[Gpu]) -> str | None:
    """What GPUs are that cannot share a model, because one is of another kind than the first; none where all are alike.

    The others would wait for the slowest, the KV cache would be the smallest's, and kernels are compiled for one kind.
    """
    for number, gpu in enumerate(gpus):
        first = gpus[0]
        same = gpu.memory_bytes >= ALIKE * first.memory_bytes and first.memory_bytes >= ALIKE * gpu.memory_bytes
        if (gpu.name, gpu.sm) != (first.name, first.sm) or not same:
            return f"{_described(first)} and, as GPU {number}, {_described(gpu)}"
    return None


def _shared_by(limits: Limits) -> str:
    stages = f" × PIPELINE_PARALLEL_SIZE {limits.pipeline_parallel_size}" if limits.pipeline_parallel_size > 1 else ""
    return f"{limits.gpus} GPUs (TENSOR_PARALLEL_SIZE {limits.tensor_parallel_size}{stages})"


def _described(gpu: Gpu) -> str:
    return f"{gpu.name} (sm{gpu.sm}, {gpu.memory_bytes / 2**30:.0f} GiB)"


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
