"""The classifier's accuracy on labelled utterances, tool by tool, measured with the runtime's own code."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.embedded.utterances import heldout_utterances
from pipeline.progress import Progress
from pipeline.source.utterance_file import ToolUtterance, coverage_of
from pipeline.stages.stage import StageError
from runtime.artifact import SCREENSHOT_TOOL, ToolModel
from runtime.deployment.classifier import Decision, ToolClassifier, tools_of


@dataclass(frozen=True, slots=True)
class ToolFigures:
    """How well a classifier's tools are asked for.

    Attributes:
        accuracy: of each tool that utterances ask for, 0 to 1.
        silence: of each other one, the part on which it is not asked for of the embedded utterances that ask for
            nothing. Whether it is asked for when it should be, they do not tell.
    """

    accuracy: Mapping[str, float]
    silence: Mapping[str, float]


def tool_accuracy(folder: Path, tool: ToolModel, device: str, progress: Progress) -> float:
    """Return the part of the embedded utterances, 0 to 1, on which the classifier decides as their labels say.

    Args:
        folder: the artifact.
        tool: its classifier; of one with several tools, the one that is right least often counts.
        device: cpu or cuda.

    Raises:
        StageError: the classifier could not be loaded.
    """
    return min(measure_tools(folder, tool, device, progress).accuracy.values())


def measure_tools(
    folder: Path, tool: ToolModel, device: str, progress: Progress, utterances: Sequence[ToolUtterance] = ()
) -> ToolFigures:
    """Measure each tool of a classifier.

    A tool that the user's utterances ask for is measured on them: the mean of the parts that are right where it should
    be asked for, and where it should not. Of many tools each is asked for seldom, so that one that never fires is
    nearly always right; this way it is so by half. The screenshot is else measured on the embedded utterances, about as
    many of either kind: the part that is right.

    Args:
        folder: the artifact.
        tool: its classifier.
        device: cpu or cuda.
        utterances: the user's.

    Raises:
        StageError: the classifier could not be loaded.
    """
    coverage = coverage_of(tool.served_tools, utterances)
    embedded = _embedded() if coverage.embedded or coverage.missing else ()
    decisions = _decisions(folder, tool, device, progress, [*utterances, *embedded])
    asked = [_asked(decision) for decision in decisions]
    of_own, of_embedded = asked[: len(utterances)], asked[len(utterances) :]
    known = list(zip(embedded, of_embedded, strict=True))
    accuracy = {name: _balanced(name, utterances, of_own) for name in coverage.own}
    for name in coverage.embedded:
        accuracy[name] = _part((name in found) == (name in right.tools) for right, found in known)
    silence = {name: _part(name not in found for right, found in known if not right.tools) for name in coverage.missing}
    return ToolFigures(accuracy, silence)


def _embedded() -> tuple[ToolUtterance, ...]:
    look = frozenset({SCREENSHOT_TOOL})
    return tuple(
        ToolUtterance(entry.turns, look if entry.screenshot else frozenset()) for entry in heldout_utterances()
    )


def _balanced(name: str, utterances: Sequence[ToolUtterance], asked: Sequence[frozenset[str]]) -> float:
    pairs = list(zip(utterances, asked, strict=True))
    noticed = _part(name in found for right, found in pairs if name in right.tools)
    left_alone = _part(name not in found for right, found in pairs if name not in right.tools)
    return (noticed + left_alone) / 2


def _part(answers: Iterable[bool]) -> float:
    """The part of answers that are yes; not a number where there are none."""
    given = list(answers)
    return sum(given) / len(given) if given else float("nan")


def _asked(decision: Decision) -> frozenset[str]:
    asked = {call.name for call in decision.calls}
    return frozenset(asked | {SCREENSHOT_TOOL} if decision.take_screenshot else asked)


def _decisions(
    folder: Path, tool: ToolModel, device: str, progress: Progress, utterances: Sequence[ToolUtterance]
) -> Sequence[Decision]:
    classifier = ToolClassifier(
        folder / tool.path,
        threshold=tool.default_threshold,
        max_tokens=tool.default_tokens,
        positive_label=tool.served_tools[0].label,
        tools=tools_of(tool),
        device=device,
    )
    progress.step(f"asking the classifier about {len(utterances)} labelled utterances")

    async def decide() -> Sequence[Decision]:
        try:
            await classifier.start()
            return await asyncio.gather(*(classifier.decide(u.turns[:-1], u.turns[-1]) for u in utterances))
        finally:
            await classifier.shutdown()

    try:
        return asyncio.run(decide())
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        what = f"the classifier did not load: {first}"
        raise StageError("validate", what, folder / tool.path, "choose another TOOL_MODEL") from error
