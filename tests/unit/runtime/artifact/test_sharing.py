"""Which GPUs an artifact may be shared by."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import artifact
from runtime.artifact import ArtifactError, BuildMetadata, FileEntry, Limits
from runtime.artifact.checks.contents import check_contents
from runtime.artifact.checks.machine_fit import check_machine, check_memory
from runtime.artifact.checks.sharing import AS_BUILT, Sharing
from runtime.host.machine import Gpu, Machine
from tests.hub.golden import GIB, GOLDEN, HOPPER

H200 = HOPPER.gpus[0]
SMALL = Gpu("NVIDIA H200 MIG", 90, 17 * GIB, 17 * GIB)
HALF = replace(H200, memory_bytes=70 * GIB, free_bytes=70 * GIB)
L4 = Gpu("NVIDIA L4", 89, 24 * GIB, 24 * GIB)
BUSY = replace(H200, free_bytes=3 * GIB)


def shared_by(tensor: int, stages: int = 1, *, weights: int = GIB) -> BuildMetadata:
    """A chat model for so many GPUs."""
    metadata = artifact.read(GOLDEN / "vllm-fp8")
    assert metadata.chat is not None
    sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": stages}
    chat = metadata.chat.model_copy(update={"limits": metadata.chat.limits.model_copy(update=sizes)})
    files = (FileEntry(path="model.safetensors", size=weights, sha256="0" * 64),)
    return metadata.model_copy(update={"chat": chat, "files": files})


def machine(*gpus: Gpu) -> Machine:
    return replace(HOPPER, gpus=gpus)


def check(metadata: BuildMetadata, here: Machine, sharing: Sharing = AS_BUILT) -> None:
    check_machine(metadata, here, sharing)
    check_memory(metadata, here, 0.9, sharing)


@pytest.mark.parametrize(
    ("metadata", "here", "sharing"),
    [
        (shared_by(1), machine(H200), AS_BUILT),
        (shared_by(1), machine(H200, L4), AS_BUILT),  # the second is left alone
        (shared_by(2), machine(H200, H200), AS_BUILT),
        (shared_by(2), machine(H200, H200, L4), AS_BUILT),
        (shared_by(2, 2), machine(*[H200] * 4), AS_BUILT),
        (shared_by(2), machine(H200), Sharing(tensor=1)),
        (shared_by(2), machine(*[H200] * 4), Sharing(tensor=4)),
        (shared_by(1), machine(*[H200] * 2), Sharing(pipeline=2)),
        (shared_by(2), machine(H200, replace(H200, memory_bytes=139 * GIB)), AS_BUILT),  # a driver took some
        (shared_by(2, weights=200 * GIB), machine(H200, H200), AS_BUILT),  # on neither alone
    ],
)
def test_gpus_that_can_share_it_are_taken(metadata: BuildMetadata, here: Machine, sharing: Sharing) -> None:
    check(metadata, here, sharing)


@pytest.mark.parametrize(
    ("metadata", "here", "sharing", "message"),
    [
        (shared_by(2), machine(H200), AS_BUILT, r"expected 2 GPUs \(TENSOR_PARALLEL_SIZE 2\), found 1; "),
        (shared_by(4), machine(H200, H200, H200), AS_BUILT, r"expected 4 GPUs \(TENSOR_PARALLEL_SIZE 4\), found 3"),
        (
            shared_by(2, 2),
            machine(H200, H200),
            AS_BUILT,
            r"expected 4 GPUs \(TENSOR_PARALLEL_SIZE 2 × PIPELINE_PARALLEL_SIZE 2\), found 2",
        ),
        (shared_by(1), machine(H200), Sharing(tensor=2), r"expected 2 GPUs \(TENSOR_PARALLEL_SIZE 2\), found 1"),
        (
            shared_by(2),
            machine(H200, L4),
            AS_BUILT,
            r"alike, found NVIDIA H200 \(sm90, 140 GiB\) and, as GPU 1, NVIDIA L4 \(sm89, 24 GiB\); choose others with "
            "CUDA_VISIBLE_DEVICES",
        ),
        (shared_by(2), machine(H200, SMALL), AS_BUILT, "as GPU 1, NVIDIA H200 MIG"),
        (shared_by(2), machine(H200, HALF), AS_BUILT, r"as GPU 1, NVIDIA H200 \(sm90, 70 GiB\)"),
        (shared_by(2), machine(HALF, H200), AS_BUILT, r"as GPU 1, NVIDIA H200 \(sm90, 140 GiB\)"),
        (
            shared_by(2, weights=300 * GIB),
            machine(H200, H200),
            AS_BUILT,
            r"expected room for 150.0 GiB of weights, found 126.0 GiB \(90% of GPU 0's memory\)",
        ),
        (
            shared_by(2, weights=8 * GIB),
            machine(H200, BUSY),
            AS_BUILT,
            "expected room for 4.0 GiB of weights, found 3.0 GiB of GPU 1's memory free; end what else uses it",
        ),
        (shared_by(1, weights=200 * GIB), machine(H200, H200), AS_BUILT, "expected room for 200.0 GiB"),
    ],
)
def test_gpus_that_cannot_share_it_are_refused_in_one_line(
    metadata: BuildMetadata, here: Machine, sharing: Sharing, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        check(metadata, here, sharing)
    assert "\n" not in str(caught.value)


GPUS = st.lists(st.sampled_from([H200, HALF, SMALL, BUSY]), min_size=1, max_size=6)


@given(tensor=st.sampled_from([1, 2, 4]), stages=st.integers(1, 3), gpus=GPUS, weights=st.integers(1, 400 * GIB))
def test_what_is_taken_has_room_for_its_share_on_each_of_as_many_gpus_that_are_alike(
    tensor: int, stages: int, gpus: list[Gpu], weights: int
) -> None:
    count = tensor * stages
    share = weights // count
    used = gpus[:count]
    fits = len(used) == count and len({(gpu.name, gpu.memory_bytes) for gpu in used}) == 1
    fits = fits and all(share < int(gpu.memory_bytes * 0.9) and share < gpu.free_bytes for gpu in used)
    try:
        check(shared_by(tensor, stages, weights=weights), machine(*gpus))
        taken = True
    except ArtifactError:
        taken = False
    assert taken == fits


@pytest.mark.parametrize(
    ("gpus", "mib", "fits"), [(2, 64, False), (2, 255, False), (2, 256, True), (2, 0, True), (1, 64, True)]
)
def test_several_gpus_processes_need_memory_that_they_share(gpus: int, mib: int, fits: bool) -> None:
    here = replace(machine(*[H200] * gpus), shared_bytes=mib << 20)
    if fits:
        check(shared_by(gpus), here)
        return
    with pytest.raises(ArtifactError, match=r"expected 256 MiB of shared memory .* for 2 GPUs' processes, found \d+;"):
        check(shared_by(gpus), here)


def test_one_stage_is_written_as_it_always_was() -> None:
    limits = Limits(max_batch_size=1, max_input_len=1, max_output_len=1, max_model_len=3, tensor_parallel_size=2)
    assert "pipeline_parallel_size" not in limits.model_dump()
    staged = limits.model_copy(update={"pipeline_parallel_size": 2})
    assert Limits(**staged.model_dump()) == staged
    assert staged.gpus == 4


@pytest.mark.parametrize("ranks", [[], [0], [1], [0, 2], [0, 1, 2]])
def test_a_compiled_engine_has_one_file_for_each_gpu(ranks: list[int]) -> None:
    metadata = artifact.read(GOLDEN / "vllm-fp8")
    assert metadata.chat is not None
    limits = metadata.chat.limits.model_copy(update={"tensor_parallel_size": 2})
    chat = metadata.chat.model_copy(
        update={"limits": limits, "engine_path": "trt-llm/engines/x", "compile_cache": None}
    )

    def made(ranks: list[int]) -> BuildMetadata:
        paths = ["trt-llm/engines/x/config.json", *(f"trt-llm/engines/x/rank{rank}.engine" for rank in ranks)]
        files = tuple(FileEntry(path=path, size=1, sha256="0" * 64) for path in paths)
        return metadata.model_copy(update={"lane": "trt", "engine": "trt", "chat": chat, "files": files, "tool": None})

    check_contents(made([0, 1]))
    with pytest.raises(ArtifactError, match=r"expected rank0.engine to rank1.engine for 2 GPUs, found (none|also) "):
        check_contents(made(ranks))
