"""Texts for calibration and validation: a calibration set, a held-out set, and prompts with known answers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

SEPARATOR = "\n---\n"

# The held-out texts are read in windows of so many tokens, so an engine takes prompts as long. Log-probabilities of a
# whole window over the vocabulary are in memory at once: 512 × 150,000 × 4 bytes are 0.3 GB.
WINDOW_TOKENS = 512


@dataclass(frozen=True, slots=True)
class KnownPrompt:
    """A question that every working chat model answers.

    Attributes:
        prompt: what the user says, without history or persona.
        must_contain_any: the answer holds one of these, whatever its case.
    """

    prompt: str
    must_contain_any: tuple[str, ...]

    def answered_by(self, reply: str) -> bool:
        """Tell whether a reply holds one of the expected words."""
        return any(word.casefold() in reply.casefold() for word in self.must_contain_any)


def calibration_texts() -> list[str]:
    """Return the calibration set: conversations of 130 to 270 tokens, as `User:` and `Assistant:` transcripts."""
    return _read("calibration.txt") + _read("calibration_generated.txt")


def heldout_texts() -> list[str]:
    """Return the held-out set: conversations on other topics than the calibration set, in the same form."""
    return _read("heldout.txt")


def known_prompts() -> list[KnownPrompt]:
    """Return questions that the embedded chat model answers with greedy sampling, in bfloat16 and quantized."""
    return [
        KnownPrompt("What is the capital of France?", ("Paris",)),
        KnownPrompt("What is the capital of Italy?", ("Rome",)),
        KnownPrompt("What is the capital of Japan?", ("Tokyo",)),
        KnownPrompt("What is the capital of Germany?", ("Berlin",)),
        KnownPrompt("How many days are in a week?", ("7", "seven")),
        KnownPrompt("What is the opposite of hot?", ("cold",)),
        KnownPrompt("What is the largest ocean on Earth?", ("Pacific",)),
        KnownPrompt("Name the first month of the year.", ("January",)),
    ]


def _read(name: str) -> list[str]:
    text = (resources.files("pipeline.embedded") / "data" / name).read_text(encoding="utf-8")
    return text.strip().split(SEPARATOR)
