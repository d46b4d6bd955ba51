"""Calibration data sets: where they are, how their files are read, and what their rows hold.

`read_dataset` reads a whole one; `dataset_problem` tells before any work why that would fail. May import `source` and
below.
"""

from pipeline.datasets.checks import dataset_problem
from pipeline.datasets.dataset import HUB_NAMES, identity_of, read_dataset
from pipeline.datasets.files import read_file
from pipeline.datasets.hub_files import training_file
from pipeline.datasets.rows import LEAST_TOKENS, Messages, Sample, sample_of

__all__ = [
    "HUB_NAMES",
    "LEAST_TOKENS",
    "Messages",
    "Sample",
    "dataset_problem",
    "identity_of",
    "read_dataset",
    "read_file",
    "sample_of",
    "training_file",
]
