"""Everything that is decided and checked before any work. Reads configs, the environment and the machine.

`BuildPlan` and its parts are offered here. May import `source` and below.
"""

from pipeline.plan.build_plan import (
    SEED,
    BuildPlan,
    BuildRequest,
    CalibrationPlan,
    ChatPlan,
    PlanDecision,
    ToolPlan,
    TrtPlan,
)

__all__ = ["SEED", "BuildPlan", "BuildRequest", "CalibrationPlan", "ChatPlan", "PlanDecision", "ToolPlan", "TrtPlan"]
