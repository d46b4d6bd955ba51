"""Planning: everything that is decided and checked before any work.

Configs, the environment and the machine are read here.

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
