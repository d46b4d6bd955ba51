"""The classifier that decides before the first token: its network, its worker, and what it decides.

May import what `deployment` may.
"""

from runtime.deployment.classifier.decision import Decision, Tool, ToolProbability, tools_of
from runtime.deployment.classifier.model import format_utterances
from runtime.deployment.classifier.tool_classifier import (
    ALONE_THREADS,
    BESIDE_CHAT_THREADS,
    ToolClassifier,
    ToolClosedError,
)
from runtime.deployment.classifier.window import is_multi_label, window_of

__all__ = [
    "ALONE_THREADS",
    "BESIDE_CHAT_THREADS",
    "Decision",
    "Tool",
    "ToolClassifier",
    "ToolClosedError",
    "ToolProbability",
    "format_utterances",
    "is_multi_label",
    "tools_of",
    "window_of",
]
