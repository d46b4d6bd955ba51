"""The classifier's accuracy on held-out utterances, measured with the runtime's own code."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pipeline.embedded.utterances import heldout_utterances
from pipeline.progress import Progress
from pipeline.stages.stage import StageError
from runtime.artifact import ToolModel
from runtime.deployment.classifier import ToolClassifier


def tool_accuracy(folder: Path, tool: ToolModel, device: str, progress: Progress) -> float:
    """Return the part of the held-out utterances, 0 to 1, on which the classifier decides as their labels say.

    Args:
        folder: the artifact.
        device: cpu or cuda.

    Raises:
        StageError: the classifier could not be loaded.
    """
    classifier = ToolClassifier(
        folder / tool.path,
        threshold=tool.default_threshold,
        max_tokens=tool.default_tokens,
        positive_label=tool.positive_label,
        device=device,
    )
    utterances = heldout_utterances()
    progress.step(f"asking the classifier about {len(utterances)} held-out utterances")

    async def count_right() -> int:
        try:
            await classifier.start()
            decisions = await asyncio.gather(*(classifier.decide(u.turns[:-1], u.turns[-1]) for u in utterances))
        finally:
            await classifier.shutdown()
        pairs = zip(decisions, utterances, strict=True)
        return sum(decision.take_screenshot == utterance.screenshot for decision, utterance in pairs)

    try:
        return asyncio.run(count_right()) / len(utterances)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        what = f"the classifier did not load: {first}"
        raise StageError("validate", what, folder / tool.path, "choose another TOOL_MODEL") from error
