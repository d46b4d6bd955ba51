"""Text to token ids: without control tokens from outside, in chunks that a cache remembers, and no longer than allowed.

- A client's text must not become control tokens. Control tokens found in it are broken up (`<|im_end|>` becomes
  `< |im_end|>`), so that every control token in a prompt comes from the template.
- A control token ends the tokenizer's view: what stands on either side is tokenized independently. So a prompt is
  tokenized in chunks that begin at control tokens, and chunks that were seen before come from a cache. A new turn
  costs the tokenization of its utterance, not of its whole history.
"""

from __future__ import annotations

import re
import threading
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

T = TypeVar("T")

# Ordinary text has 3 to 5 characters a token. Longer texts than this many are tokenized in part first: most are over
# their budget by then and need not be tokenized whole.
LIKELY_CHARACTERS_PER_TOKEN = 16
# Chunks kept in the cache, and the longest that is: some 10 MB when each is a usual chat message.
CACHED_CHUNKS = 8192
CACHED_CHARACTERS = 16384


class TokenizeLimitError(Exception):
    """More would have to be tokenized than there is patience for."""


class _WorkLimit(threading.local):
    """Characters that this thread may still tokenize; no limit by default."""

    remaining: float = float("inf")


class TextTokens:
    """A tokenizer as prompts need it. Every method is safe to call from several threads.

    Args:
        tokenizer: a fast tokenizer of the transformers library. It no longer truncates nor pads from here on.
        samples: prompts. Where chunks do not give the tokens of the whole for each of them, none is chunked: they do
            not where control tokens swallow space on their left.
    """

    def __init__(self, tokenizer: Any, samples: Sequence[str]) -> None:  # noqa: ANN401 - transformers is untyped to us
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._control = control_pattern(tokenizer)
        self._longest_token = max(len(token) for token in tokenizer.get_vocab())
        self._limit = _WorkLimit()
        self._encode_cached: Callable[[str], array[int]] = lru_cache(CACHED_CHUNKS)(self.encode_anew)
        self.chunked = all(
            [token for chunk in self._chunks(text) for token in self.encode_anew(chunk)] == list(self.encode_anew(text))
            for text in samples
        )

    def with_limit(self, characters: int, work: Callable[[], T]) -> T:
        """The result of work during which this thread tokenizes at most so many characters anew.

        Raises:
            TokenizeLimitError: more would be needed.
        """
        self._limit.remaining = characters
        try:
            return work()
        finally:
            del self._limit.remaining

    def escaped(self, text: str) -> str:
        """A client's text with its control tokens broken up, so that none of them is one, and without outer space."""
        text = text.strip()
        while self._control.search(text):
            text = self._control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        return text

    def encode(self, text: str) -> array[int]:
        """Token ids, from the cache when the text was seen before."""
        return self._encode_cached(text) if len(text) <= CACHED_CHARACTERS else self.encode_anew(text)

    def encode_anew(self, text: str) -> array[int]:
        """Token ids, past the cache."""
        self._charge(len(text))
        # The fast form keeps no offsets.
        return array("I", self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text whose control tokens are the template's own."""
        if not self.chunked:
            return list(self.encode(text))
        tokens: list[int] = []
        for chunk in self._chunks(text):
            tokens.extend(self.encode(chunk))
        return tokens

    def count_to(self, text: str, limit: int) -> int:
        """Tokens of a text, exact up to `limit`; above it, some number above it."""
        if len(text) > limit * self._longest_token:
            return limit + 1
        likely = limit * LIKELY_CHARACTERS_PER_TOKEN
        if len(text) > likely:
            # The cut can split a last word into more tokens than it has in the whole.
            head = len(self.encode_anew(text[:likely])) - self._longest_token
            if head > limit:
                return head
        return len(self.encode(text))

    def tail(self, text: str, limit: int) -> str:
        """The longest end of a text that has at most `limit` tokens, cut before a token."""
        if len(text.encode()) <= limit:  # a token is at least one byte
            return text
        window = max(limit, 1) * LIKELY_CHARACTERS_PER_TOKEN
        while len(text) > window:
            end = text[-window:]
            if len(self.encode_anew(end)) > limit:
                text = end
                break
            window *= 2
        self._charge(len(text))
        while (encoding := self._tokenizer.encode(text, add_special_tokens=False)) and len(encoding.ids) > limit:
            # Tokens inside one character share its offsets, and a cut can change how the rest is split: look again.
            start = encoding.offsets[len(encoding.ids) - limit][0] if limit else len(text)
            text = text[max(start, 1) :].lstrip()
        return text

    def _chunks(self, text: str) -> list[str]:
        starts = [match.start() for match in self._control.finditer(text)]
        edges = sorted({0, *starts, len(text)})
        return [text[start:end] for start, end in pairwise(edges)]

    def _charge(self, characters: int) -> None:
        """Account for text that is about to be tokenized."""
        if characters > self._limit.remaining:
            raise TokenizeLimitError
        self._limit.remaining -= characters


def control_pattern(tokenizer: Any) -> re.Pattern[str]:  # noqa: ANN401 - transformers is untyped to us
    """Matches every control token: the special ones, and added ones that look like markup, such as `<think>`."""
    tokens = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if len(token.content.strip()) > 1 and (token.special or token.content[0] + token.content[-1] in ("<>", "[]"))
    ]
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) if tokens else r"(?!)")
