"""What is decided: whether to look at the screen, or to call other tools."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.artifact import ToolModel
from runtime.defaults import first_set


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a classifier can ask for.

    Attributes:
        name: as the client knows it.
        label: index of its logit.
        threshold: probability from which it is asked for.
    """

    name: str
    label: int
    threshold: float


@dataclass(frozen=True, slots=True)
class ToolProbability:
    """A tool that is asked for, and the probability that it was decided on."""

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to take a screenshot, and the probability that it was decided on.

    Attributes:
        take_screenshot: whether that tool is asked for.
        probability: of it, or of the likeliest tool where it is none of the classifier's.
        calls: every tool that is asked for, most probable first; empty where the classifier has one alone.
    """

    take_screenshot: bool
    probability: float
    calls: tuple[ToolProbability, ...] = ()


def tools_of(tool: ToolModel, threshold: float | None = None) -> tuple[Tool, ...]:
    """The tools of a classifier with several, as it is asked about them; empty for one.

    Args:
        threshold: the operator's, which replaces each tool's own.
    """
    return tuple(
        Tool(entry.name, entry.label, first_set(threshold, default=tool.threshold_of(entry))) for entry in tool.tools
    )
