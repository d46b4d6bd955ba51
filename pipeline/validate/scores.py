"""Scores of texts, token by token, and how those of two models differ.

Scores are a pure function of the model's content, the texts, and the engine's version, so those of the float model can
be kept and used for every method.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.embedded.texts import WINDOW_TOKENS
from pipeline.stages.stage import StageError
from runtime.engines import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.progress import Progress

WINDOWS_AT_ONCE = 4
# By how much the logarithm of a probability may be above 0 in the arithmetic of an engine.
ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Scores:
    """A model's scores of the held-out windows.

    Attributes:
        windows_sha256: hash over the token ids, so that only scores of the same windows are compared.
        logprobs: natural logarithm of the probability of each token after a window's first; not numbers where the
            engine does not tell them.
        top_tokens: at each of these positions, the token that the model would have chosen.
    """

    windows_sha256: str
    logprobs: tuple[float, ...]
    top_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that these can be scores.

        Raises:
            ValueError: they cannot: some are missing, or are no logarithms of a probability.
        """
        if not self.logprobs or len(self.logprobs) != len(self.top_tokens):
            raise ValueError(f"expected a token for each log-probability, found {len(self.top_tokens)}")
        unknown = sum(map(math.isnan, self.logprobs))
        if unknown not in (0, len(self.logprobs)):
            raise ValueError(f"expected log-probabilities, found {unknown} of {len(self.logprobs)} that are no number")
        if not unknown and not all(-math.inf < value <= ROUNDING for value in self.logprobs):
            raise ValueError("expected logarithms of probabilities, found what cannot be one")
        if any(token < 0 for token in self.top_tokens):
            raise ValueError("expected tokens, found a negative one")

    @property
    def has_logprobs(self) -> bool:
        """Whether the engine tells the log-probabilities of given tokens."""
        return not any(map(math.isnan, self.logprobs))

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-probability; infinite where it is too large to be told."""
        try:
            return math.exp(-math.fsum(self.logprobs) / len(self.logprobs))
        except OverflowError:
            return math.inf

    def write(self, path: Path) -> None:
        """Write the scores to a JSON file."""
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Read scores from the JSON file that `write` wrote.

        Raises:
            StageError: the file is missing or is not that of scores.
        """
        try:
            document = json.loads(path.read_bytes())
            numbers, tokens = document["logprobs"], document["top_tokens"]
            if not all(type(value) in (float, int) for value in numbers):
                raise TypeError("log-probabilities that are no numbers")
            if not all(type(value) is int for value in tokens):
                raise TypeError("tokens that are no numbers")
            return cls(str(document["windows_sha256"]), tuple(map(float, numbers)), tuple(tokens))
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"expected the float model's scores, found {type(error).__name__}: {error}"
            raise StageError("validate", what, path, "measure the float model again, with --force") from error


def windows_of(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], context: int) -> list[list[int]]:
    """Cut the token ids of each text into windows that an engine with this context can score.

    The engine takes one more token than it scores.

    Windows of a single token say nothing and are left out.
    """
    length = min(WINDOW_TOKENS, context - 1)
    if length < 2:
        raise StageError("validate", f"expected a context of at least 3 tokens, found {context}", "max_model_len")
    windows: list[list[int]] = []
    for text in texts:
        tokens: list[int] = tokenizer(text)["input_ids"]
        windows += [tokens[begin : begin + length] for begin in range(0, len(tokens), length)]
    return [window for window in windows if len(window) > 1]


async def score(engine: Engine, windows: Sequence[Sequence[int]], progress: Progress) -> Scores:
    """Score every window, several at once; the result is in the windows' order."""
    semaphore, done = asyncio.Semaphore(WINDOWS_AT_ONCE), 0

    async def score_window(window: Sequence[int]) -> list[tuple[float, int]]:
        nonlocal done
        async with semaphore:
            scored = await engine.score(window)
        if len(scored) != len(window) - 1:
            raise StageError("validate", f"expected scores of {len(window) - 1} tokens, found {len(scored)}")
        done += 1
        progress.advance(done / len(windows))
        return [(token.logprob, token.top_token) for token in scored]

    flat = [entry for window in await asyncio.gather(*map(score_window, windows)) for entry in window]
    if not flat:
        raise StageError("validate", "expected held-out text, found none")
    try:
        return Scores(sha256_of(windows), tuple(logprob for logprob, _ in flat), tuple(top for _, top in flat))
    except ValueError as error:
        raise StageError("validate", str(error), next_step="the model computes what is no number") from error


def sha256_of(windows: Iterable[Sequence[int]]) -> str:
    """Return a SHA-256 over the windows' token ids, in order."""
    return hashlib.sha256(json.dumps([list(window) for window in windows]).encode()).hexdigest()


def perplexity_ratio(scores: Scores, reference: Scores) -> float:
    """Return the perplexity over the reference's: above 1 is worse."""
    _check_same(scores, reference)
    return scores.perplexity / reference.perplexity


def top1_agreement(scores: Scores, reference: Scores) -> float:
    """Return the part of the positions, 0 to 1, at which both would choose the same token."""
    _check_same(scores, reference)
    pairs = zip(scores.top_tokens, reference.top_tokens, strict=True)
    return sum(mine == theirs for mine, theirs in pairs) / len(reference.top_tokens)


def _check_same(scores: Scores, reference: Scores) -> None:
    same = scores.windows_sha256 == reference.windows_sha256
    if same and len(scores.logprobs) != len(reference.logprobs):
        raise StageError("validate", f"expected {len(reference.logprobs)} scores, found {len(scores.logprobs)}")
    if not same:
        raise StageError(
            "validate",
            f"expected scores of the windows {reference.windows_sha256[:12]}, found {scores.windows_sha256[:12]}",
            next_step="the models tokenize differently, or the held-out text changed; measure the float model again",
        )
