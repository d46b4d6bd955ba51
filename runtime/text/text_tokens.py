"""Text to token ids: without control tokens from outside, in chunks that a cache remembers, and no longer than allowed.

- A client's text must not become control tokens, nor other marks of the template (`marks`). They are broken up
  (`<|im_end|>` becomes `< |im_end|>`), so that every one in a prompt comes from the template. Those of one sign are
  left out, and where a tokenizer or a template takes the space out again, another sign breaks them up.
- A control token ends the tokenizer's view: what stands on either side is tokenized independently. So a prompt is
  tokenized in chunks that begin at control tokens, and chunks that were seen before come from a cache. A new turn
  costs the tokenization of its utterance, not of its whole history.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from runtime.host.texts.cache import TextCache
from runtime.host.texts.words import any_of
from runtime.text.marks.breaker import Breaker
from runtime.text.marks.learned import CHANNEL_MARKS, TemplateMarks

T = TypeVar("T")

# Ordinary text has 3 to 5 characters a token. Longer texts than this many are tokenized in part first: most are over
# their budget by then and need not be tokenized whole.
LIKELY_CHARACTERS_PER_TOKEN = 16
# What the cache of chunks may hold, and the largest of them. A usual chat message is a kilobyte, tokens included.
CACHE_BYTES = 48 * 2**20
CACHED_CHUNK_BYTES = 3 * 2**16
# Longer texts are searched for marks once: looking one up costs as much as searching so many characters.
SEARCHED_CHARACTERS = 256
# What the cache of searched texts may hold, and the largest of them; the text itself counts twice.
SEARCHED_BYTES = 16 * 2**20
SEARCHED_TEXT_BYTES = 2**18
# The space of SentencePiece.
METASPACE = "\u2581"
ASCII = " ".join(map(chr, range(33, 127)))
# Some text without marks.
PLAIN = "a"
# What breaks a mark up: the first of these that is still there when tokenizer and template have had the text.
GAPS = (" ", "-", "_", ". ")
# How tokens begin and end that look like markup.
BRACKETS = frozenset({"<>", "[]", "{}", "◁▷", "｟｠", "【】"})


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
        marks: what else a client must not write: the template's marks that are plain text.
        told: a text as the template tells it, with what stands around; none where it stays as it is.
    """

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401 - transformers is untyped to us
        samples: Sequence[str],
        marks: TemplateMarks,
        told: Callable[[str], str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        control = control_tokens(tokenizer)
        self._control = re.compile(any_of(control))  # the template's own, once a client's are broken up
        self._normalizer = self._tokenizer.normalizer  # what text goes through first; may be none
        self._normalizes_ascii = self._normalized(ASCII) != ASCII  # whether that changes plain text
        # Tokens that are found in what has gone through it, as they are found there.
        found = {
            self._normalized(token.content) for token in tokenizer.added_tokens_decoder.values() if token.normalized
        }
        normalized = {token for token in map(str.strip, control) if self._normalized(token) in found}
        # What a client must not write.
        self._breaker = Breaker(
            {*control, *map(self._normalized, normalized), *marks.anywhere, *CHANNEL_MARKS}, marks.lines
        )
        single = {token.strip() for token in control if len(token.strip()) == 1}
        # Control tokens of one sign, so that nothing breaks them up; none in nearly every tokenizer.
        self._single = re.compile(any_of(single)) if single else None
        self._told = told
        self._told_plain = 0 if told is None else self._count(told(PLAIN))  # marks of the template itself
        self._longest_token = max(len(token) for token in tokenizer.get_vocab())  # characters
        # Each token id that was met, once. To make the same thousands of numbers for every prompt costs more than all
        # else that puts cached chunks together.
        self._ids: dict[int, int] = {}
        self._limit = _WorkLimit()  # what each thread may still tokenize
        # Token ids of what was seen before.
        self._encode_cached = TextCache(self.encode_anew, limit=CACHE_BYTES, entry_limit=CACHED_CHUNK_BYTES)
        # A client's texts as they go into prompts.
        self._escape_cached = TextCache(self._escape, limit=SEARCHED_BYTES, entry_limit=SEARCHED_TEXT_BYTES)
        # Whether prompts are tokenized chunk by chunk.
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
        """A client's text with its control tokens and other marks broken up, and without outer space."""
        return self._escape(text) if len(text) < SEARCHED_CHARACTERS else self._escape_cached(text)

    def _escape(self, text: str) -> str:
        text = text.strip()
        folds = self._normalizes_ascii or not text.isascii()
        if folds:
            # A mark may come to be only when the tokenizer normalizes: from full-width brackets, say.
            normalized = self._normalized(text)
            if normalized != text and self._count(normalized):
                text = normalized.strip()
        broken = self._broken(text, GAPS[0])
        # Nearly every text holds no mark, and is what it was.
        if (folds and broken != text) or self._told is not None:
            safe = (said for said in (broken, *(self._broken(text, gap) for gap in GAPS[1:])) if self._is_safe(said))
            broken = next(safe, "")
        return broken

    def _broken(self, text: str, gap: str) -> str:
        if self._single is not None:
            text = self._single.sub("", text).strip()
        return self._breaker.broken(text, gap)

    def _is_safe(self, text: str) -> bool:
        """Whether no mark is made of a text on its way to the model."""
        if self._count(self._normalized(text)):
            return False
        return self._told is None or self._count(self._normalized(self._told(text))) <= self._told_plain

    def _count(self, text: str) -> int:
        """Marks in a text."""
        singles = 0 if self._single is None else len(self._single.findall(text))
        return singles + self._breaker.count(text)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids, from the cache when the text was seen before."""
        return self._encode_cached(text)

    def encode_anew(self, text: str) -> tuple[int, ...]:
        """Token ids, past the cache."""
        self._charge(len(text))
        # The fast form keeps no offsets.
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return tuple(map(self._ids.setdefault, ids, ids))

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text whose control tokens are the template's own."""
        if not self.chunked:
            return list(self.encode(text))
        tokens: list[int] = []
        for chunk in self._chunks(text):
            tokens += self._encode_cached(chunk)
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

    def known_excess(self, text: str, limit: int) -> int | None:
        """Some number of tokens above `limit` where a client's text surely has more; none where that must be counted.

        Its length or its beginning tells, before all of it is searched for marks: that costs as much as it is long,
        and whoever sends what is too long may send it again and again.
        """
        if len(text) <= limit * LIKELY_CHARACTERS_PER_TOKEN:
            return None
        text = text.strip()
        if len(text) > limit * self._longest_token:
            return limit + 1
        for characters in (2 * limit, limit * LIKELY_CHARACTERS_PER_TOKEN):
            found = len(self.encode_anew(self._escape(text[:characters]))) - self._longest_token
            if len(text) > characters and found > limit:
                return found
        return None

    def escaped_tail(self, text: str, limit: int) -> str:
        """The longest end of a client's text that has at most `limit` tokens, as it goes into prompts.

        What is a mark depends on what stands before it: one that filled no line does where it is cut behind its
        beginning, and one in another word's middle begins one. So what was cut is looked at again.
        """
        # No token is longer: what stands before these is not in the end.
        text = self.escaped(text.rstrip()[-limit * self._longest_token - 1 :])
        while (end := self.tail(text, limit)) != text:
            text = self.escaped(end)
        return text

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
        chunks, begun = [], 0
        for match in self._control.finditer(text):
            if (start := match.start()) > begun:
                chunks.append(text[begun:start])
                begun = start
        if begun < len(text):
            chunks.append(text[begun:])
        return chunks

    def _normalized(self, text: str) -> str:
        """The text as the tokenizer's model gets to see it, with plain spaces."""
        normal = text if self._normalizer is None else str(self._normalizer.normalize_str(text))
        return normal.replace(METASPACE, " ").removeprefix(" ")

    def _charge(self, characters: int) -> None:
        """Account for text that is about to be tokenized."""
        if characters > self._limit.remaining:
            raise TokenizeLimitError
        self._limit.remaining -= characters


def control_tokens(tokenizer: Any) -> list[str]:  # noqa: ANN401 - transformers is untyped to us
    """Every control token: the special ones, and added ones that look like markup, such as `<think>`.

    No letter or digit and no space is one on its own, whatever a tokenizer says: there would be no writing without it.
    """
    return [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if (len(token.content.strip()) > 1 or _is_sign(token.content.strip()))
        and (token.special or token.content[0] + token.content[-1] in BRACKETS)
    ]


def _is_sign(text: str) -> bool:
    return len(text) == 1 and not text.isalnum()
