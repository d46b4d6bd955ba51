"""The lanes and their methods: what each can do, on which hardware, and how good it must be.

A lane is what images, locks and artifacts belong to: `vllm`, `trt` or `cpu`; `INFERENCE_ENGINE` names one.
`runtime.engines` says what an engine and a backend are. A lane is one entry of `LANES` here, one module in
`quantize/`, one in `build/` and one in the runtime's `engines/`.
May import the ground modules `progress` and `problem`.
"""

from pipeline.lanes.lane import OLDEST_SM, Lane, Refusal
from pipeline.lanes.methods import METHODS, Method
from pipeline.lanes.table import CPU, LANES, STYLES, TRT_PYTORCH, VLLM, lane_of, lane_of_artifact

__all__ = [
    "CPU",
    "LANES",
    "METHODS",
    "OLDEST_SM",
    "STYLES",
    "TRT_PYTORCH",
    "VLLM",
    "Lane",
    "Method",
    "Refusal",
    "lane_of",
    "lane_of_artifact",
]
