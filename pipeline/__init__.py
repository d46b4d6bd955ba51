"""The pipeline: from a model to an artifact that is proven.

A `Request` (`plan.py`) becomes a frozen `BuildPlan` (`planner.py`), or every `Problem` at once. A `Run` (`run.py`)
carries the plan out in `Stage`s (`stages.py`), each done once for its inputs, whole or not at all. What comes out is an
artifact, which `runtime/artifact.py` defines; a `Gate` that fails keeps it from appearing.

A lane is one entry in `lanes.py` and one module in `quantize/` and in `build/`; nothing else branches on it.
"""
