"""The lanes themselves: one entry each, in each of its styles."""

from __future__ import annotations

from dataclasses import replace

from pipeline.lanes.lane import BLACKWELL_SM, HOPPER_SM, LAST_INT8_SM, Lane, LatencyBounds, Loadable, PlainServer
from pipeline.lanes.trt_lane import TrtLane
from runtime.artifact.lanes import SERVED_LANES

# vLLM's kernels for formats that came quantized, by its own tables (`model_executor/layers/quantization`): 4-bit floats
# run on older GPUs too, with 16-bit arithmetic.
VLLM_LOADS = (
    Loadable("compressed-tensors", ("W4A16", "W8A16", "FP8", "W8A16 (FP8)", "NVFP4", "NVFP4A16", "MXFP4", "MXFP8")),
    Loadable("compressed-tensors", ("W8A8",), most_sm=LAST_INT8_SM),
    Loadable("compressed-tensors", ("W4A8 (FP8)",), least_sm=HOPPER_SM, most_sm=HOPPER_SM),
    Loadable("awq", ("W4A16",)),
    Loadable("gptq", ("W4A16", "W8A16")),
    Loadable("fp8", ("FP8",)),
    Loadable("auto-round", ("W2A16", "W3A16", "W4A16", "W8A16")),
    Loadable("mxfp4", ("MXFP4",)),
    Loadable("modelopt", ("FP8", "NVFP4", "NVFP4A16", "MXFP8", "mixed")),
)

PLAIN_VLLM = PlainServer("vLLM", "vllm serve {repo} --max-model-len {context}")

TRT = TrtLane(
    served=SERVED_LANES["trt"],
    engine="trt",
    module="trt",
    help="The TensorRT-LLM lane.",
    methods=("int4_awq", "fp8", "int8_sq"),
    eight_bit="fp8",
    # Which methods of it run where, `refusal` tells.
    loads=(Loadable("trt-llm", ()),),
    eager=False,
    # TRT_MAX_BATCH_SIZE is required, so that this serves only for checks before it is set.
    batch=1,
    latency=LatencyBounds(ttft_ms=500, itl_ms=50, tokens_per_s=100),
    quantizer=("nvidia-modelopt", "tensorrt-llm"),
    perplexity=False,
    compiles=True,
    told_dtype=True,
    samples_variable="TRT_CALIB_SIZE",
    library="tensorrt_llm",
)

VLLM = Lane(
    served=SERVED_LANES["vllm"],
    engine="vllm",
    module="vllm",
    help="The vLLM lane, on an NVIDIA GPU.",
    methods=("awq", "gptq", "fp8", "int8", "none"),
    eight_bit="fp8",
    loads=VLLM_LOADS,
    eager=False,
    batch=256,
    latency=LatencyBounds(ttft_ms=500, itl_ms=50, tokens_per_s=100),
    plain_server=PLAIN_VLLM,
    tunes=True,
)

CPU = Lane(
    served=SERVED_LANES["cpu"],
    engine="vllm",
    module="vllm",
    help="The vLLM lane, on any processor.",
    methods=("awq", "gptq", "fp8", "int8", "none"),
    eight_bit="int8",
    # Its kernels for the CPU: INT8, and 4 bits alone. FP8 would be emulated.
    loads=(
        Loadable("compressed-tensors", ("W4A16", "W8A8")),
        Loadable("awq", ("W4A16",)),
        Loadable("gptq", ("W4A16",)),
    ),
    # Compiling takes two minutes on a CPU and makes it no faster.
    eager=True,
    batch=16,
    # Wide, for shared and busy machines: this lane proves that a model works, not that it is fast.
    latency=LatencyBounds(ttft_ms=10_000, itl_ms=1_000, tokens_per_s=2),
    streams=8,
    plain_server=PLAIN_VLLM,
)

LANES: dict[str, Lane] = {lane.name: lane for lane in (TRT, VLLM, CPU)}

TRT_PYTORCH = replace(
    TRT,
    engine="trt-pytorch",
    methods=("int4_awq", "fp8"),
    loads=(
        Loadable("modelopt", ("W4A16", "FP8")),
        Loadable("modelopt", ("NVFP4",), least_sm=BLACKWELL_SM),
        Loadable("mxfp4", ("MXFP4",)),
    ),
    batch=256,
    quantizer=("nvidia-modelopt",),
    compiles=False,
    backend="pytorch",
    builder="build_folder",
)

# Every lane in each of its styles. Lanes with the same engine have the same modules.
STYLES: tuple[Lane, ...] = (*LANES.values(), TRT_PYTORCH)


def lane_of_artifact(name: str, engine: str) -> Lane:
    """Return the lane that an artifact's metadata names, with the backend of its engine.

    Raises:
        KeyError: there is none.
    """
    return next((lane for lane in STYLES if (lane.name, lane.engine) == (name, engine)), LANES[name])


def lane_of(name: str, trt_backend: str) -> Lane:
    """Return the lane with a name; TensorRT-LLM's with the backend that `TRT_BACKEND` asks for.

    Raises:
        KeyError: there is none.
    """
    return TRT_PYTORCH if (name, trt_backend) == (TRT.name, TRT_PYTORCH.backend) else LANES[name]
