"""The classifier's accuracy on held-out utterances, measured with the runtime's own code."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.embedded.utterances import heldout_utterances
from pipeline.progress import Progress
from pipeline.stages.stage import StageError
from runtime.artifact import SCREENSHOT_TOOL, ToolModel
from runtime.deployment.classifier import Decision, ToolClassifier, tools_of


def tool_accuracy(folder: Path, tool: ToolModel, device: str, progress: Progress) -> float:
    """Return the part of the held-out utterances, 0 to 1, on which the classifier decides as their labels say.

    Args:
        folder: the artifact.
        tool: its classifier; of one with several tools, the one that is right least often counts.
        device: cpu or cuda.

    Raises:
        StageError: the classifier could not be loaded.
    """
    return min(accuracy_by_tool(folder, tool, device, progress).values())


def accuracy_by_tool(folder: Path, tool: ToolModel, device: str, progress: Progress) -> Mapping[str, float]:
    """Return for each tool the part of the held-out utterances on which it is asked for, or not, as it should be.

    The utterances ask for a look at the screen or for nothing: any other tool that is asked for is wrong there.

    Raises:
        StageError: the classifier could not be loaded.
    """
    utterances = heldout_utterances()
    decisions = _decisions(folder, tool, device, progress)
    accuracy = {}
    for entry in tool.served_tools:
        look = entry.name == SCREENSHOT_TOOL
        pairs = zip(decisions, utterances, strict=True)
        right = [_asks(decision, entry.name) == (look and utterance.screenshot) for decision, utterance in pairs]
        accuracy[entry.name] = sum(right) / len(right)
    return accuracy


def _asks(decision: Decision, name: str) -> bool:
    if name == SCREENSHOT_TOOL:
        return decision.take_screenshot
    return any(call.name == name for call in decision.calls)


def _decisions(folder: Path, tool: ToolModel, device: str, progress: Progress) -> Sequence[Decision]:
    classifier = ToolClassifier(
        folder / tool.path,
        threshold=tool.default_threshold,
        max_tokens=tool.default_tokens,
        positive_label=tool.served_tools[0].label,
        tools=tools_of(tool),
        device=device,
    )
    utterances = heldout_utterances()
    progress.step(f"asking the classifier about {len(utterances)} held-out utterances")

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
