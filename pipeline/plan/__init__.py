"""Everything that is decided and checked before any work. Reads configs, the environment and the machine.

`BuildPlan` and its parts are offered here. May import `source` and below.
"""

from pipeline.plan.build_plan import (
    SEED,
    BuildPlan,
    CalibrationPlan,
    ChatPlan,
    Decision,
    Request,
    ToolPlan,
    TrtPlan,
)

__all__ = ["SEED", "BuildPlan", "CalibrationPlan", "ChatPlan", "Decision", "Request", "ToolPlan", "TrtPlan"]
