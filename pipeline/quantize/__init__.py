"""Quantizing: one module a lane, all working from one `QuantizeJob`, with the calibration that they read.

The quantizers need other versions of compressed-tensors and transformers than the engines, so they run as workers in an
environment of their own; `worker` starts them and reads their progress. May import `plan` and below.
"""

from pipeline.quantize.job import (
    CHOOSE_DATA_SET,
    QuantizeJob,
    copy_auxiliary_files,
    read_samples,
    samples_of,
)

__all__ = ["CHOOSE_DATA_SET", "QuantizeJob", "copy_auxiliary_files", "read_samples", "samples_of"]
