"""A quantizer's worker for tests, which does what the job's method says."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from pipeline.quantize import QuantizeJob, worker
from pipeline.stages.stage import StageError


def main() -> None:
    job = QuantizeJob.read(Path(sys.argv[1]))
    progress = worker.open_progress()
    print("a library talks on standard output")
    progress.step("working")
    progress.advance(0.5)
    if job.method == "crash":
        print("\rbar 1%\rbar 99%\nthe weights are torn", file=sys.stderr)
        sys.exit(3)
    if job.method == "refuse":
        with progress.refusals():
            raise StageError("quantize", "expected all weights, found none", job.model, "fetch it again")
    if job.method == "sleep":
        (job.out / "pid").write_text(str(os.getpid()))
        time.sleep(60)
    (job.out / "config.json").write_text("{}")


if __name__ == "__main__":
    main()
