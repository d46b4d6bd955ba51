"""The data set that a quantizer looks at: the one that was named, or the default for the model."""

from __future__ import annotations

import re
from pathlib import PurePath

from pipeline.plan.diagnostics import Diagnostics
from pipeline.plan.disk_facts import DiskFacts, PathEntry
from pipeline.settings import PipelineSettings
from pipeline.source import EMBEDDED, SourceFacts
from runtime.defaults import CALIBRATION_DATASET

HUB_DATASET = re.compile(r"[\w.-]+/[\w.-]+")


def choose_dataset(
    facts: SourceFacts, settings: PipelineSettings, disk: DiskFacts, diagnostics: Diagnostics
) -> tuple[str, str]:
    """Return the calibration's data set and why it is the one; one that is none is told."""
    named = settings.awq_calib_dataset
    dataset = named or (EMBEDDED if facts.kind == "embedded" else CALIBRATION_DATASET)
    reason = "AWQ_CALIB_DATASET" if named else f"default for {'the embedded' if dataset == EMBEDDED else 'a'} model"
    file = PurePath(dataset).suffix in {".txt", ".jsonl"}
    if file and disk.dataset is not PathEntry.FILE:
        diagnostics.problem("AWQ_CALIB_DATASET", "a text or JSONL file", f"no file {dataset}")
    elif not file and disk.dataset is not PathEntry.NOTHING and dataset not in {EMBEDDED, CALIBRATION_DATASET}:
        diagnostics.problem("AWQ_CALIB_DATASET", "a .txt or .jsonl file", dataset, "rename or convert it")
    elif not file and dataset not in {EMBEDDED, CALIBRATION_DATASET} and not HUB_DATASET.fullmatch(dataset):
        expected = f"{CALIBRATION_DATASET}, embedded, a hub data set (org/name), or a .txt or .jsonl file"
        diagnostics.problem("AWQ_CALIB_DATASET", expected, repr(dataset))
    elif disk.dataset_problem:
        diagnostics.problems.append(disk.dataset_problem)
    return dataset, reason
