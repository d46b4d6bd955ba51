"""The prompt: persona, history and utterance, rendered once by the model's own chat template to token ids.

Budgets are in the chat model's own tokens and are kept exactly, while text that cannot fit is never tokenized. What a
token is, and what is no longer one when a client says it, `text_tokens.py` knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec

from runtime import defaults
from runtime.host.texts.cache import TextCache
from runtime.host.texts.words import any_of
from runtime.text.formats import format_of, vocabulary_size
from runtime.text.marks.learned import template_marks
from runtime.text.marks.switches import switches_of
from runtime.text.template import EMPTY, ChatTemplate
from runtime.text.template_call import TemplateMessage
from runtime.text.text_tokens import TextTokens, TokenizeLimitError, control_tokens
from runtime.text.tokenizer import load_tokenizer

# What `render_inline` may look at and read in all, and tokenize anew: half a millisecond at most on a usual core.
INLINE_MESSAGES = 32
INLINE_CHARACTERS = 16384
INLINE_NEW_CHARACTERS = 768
# Bytes of the system messages whose length in tokens is remembered.
SYSTEMS_BYTES = 8 * 2**20
# Joining an utterance to its surroundings can add a token on either side, never more than these.
BOUNDARY_TOKENS = 4
# First characters of every kind that tokenizers treat differently, for finding what all prompts have in common.
PROBES = ("", "a", "Z", "1", "é", "你", "🙂", '"', "'s", "<", "[", "-", "_")


class Message(msgspec.Struct, frozen=True, gc=False):
    """One turn of the history: role `user` or `assistant`.

    The collector of garbage passes it by: thousands of histories would make it stop all turns for a tenth of a second.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Budgets:
    """Most tokens of each part, and of the whole prompt with what the template adds."""

    persona: int = defaults.PERSONA_TOKENS
    history: int = defaults.HISTORY_TOKENS
    utterance: int = defaults.UTTERANCE_TOKENS
    input: int = defaults.INPUT_TOKENS


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt for the engine.

    Attributes:
        token_ids: the whole of it.
        history_kept: how many of the newest history messages it holds.
        begun: what it ends with, after the user's words; none where that is what all prompts end with.
    """

    token_ids: list[int]
    history_kept: int
    begun: str | None = None


class PersonaTooLongError(ValueError):
    """The persona, or the system message with its runtime text, is over its budget.

    Attributes:
        found: tokens; a lower bound when the text was too long to be worth counting.
        limit: tokens allowed.
    """

    def __init__(self, found: int, limit: int) -> None:
        super().__init__(f"expected a system prompt of at most {limit} tokens, found {found} or more; shorten it")
        self.found = found
        self.limit = limit


class PromptRenderer:
    """Renders prompts for one chat model. Loading blocks; every method is safe to call from several threads.

    Args:
        folder: the chat model: its tokenizer and chat template are loaded.
        budgets: most tokens of each part.
        think: whether thought has a budget: a model that always thinks is let.

    Attributes:
        format: how replies begin, go on and end.
        off: what the template is told so that the model does not think.

    Raises:
        ValueError: the folder holds no fast tokenizer, no chat template, or one that renders no conversation.
    """

    def __init__(self, folder: Path, budgets: Budgets, think: bool = False) -> None:
        tokenizer = load_tokenizer(folder)
        self._tokenizer = tokenizer  # the model's
        self._budgets = budgets
        control = re.compile(any_of(control_tokens(tokenizer)))
        try:
            # Conversations to text.
            self._template = ChatTemplate(tokenizer, control, think=think)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        source = str(tokenizer.chat_template)
        switches = switches_of(self._template.attempt, source)
        marks = template_marks(self._template.render, source, control).union(switches)
        told = self._template.everywhere if self._template.alters else None
        # Text to token ids.
        self._tokens = TextTokens(tokenizer, self._samples(), marks, told)
        # Tokens of a prompt with a system message and nothing said.
        self._minimum = TextCache(self._measure_minimum, limit=SYSTEMS_BYTES, entry_limit=SYSTEMS_BYTES // 16)
        # Tokens that the template adds to a message, on average over both sides and at most.
        self._overhead, self._most_overhead = self._message_overheads()
        # Tokens that open a conversation for a reply, at most.
        self._opening = self._most_overhead + self._tokens.count_to(EMPTY, len(EMPTY.encode()))
        self.off = dict(self._template.thought.off)
        self.format = format_of(self._template, tokenizer, control, self._tokens, vocabulary_size(folder))

    def count(self, text: str) -> int:
        """Tokens of a text on its own, as budgets count them."""
        return len(self._tokens.encode(self._tokens.escaped(text)))

    def highest_token(self) -> tuple[int, str]:
        """The highest token id that a prompt may hold, and its text.

        Prompts hold what a client may write and what the template adds. A client's control tokens are broken up, so
        those that the template does not use are in none.
        """
        control = set(control_tokens(self._tokenizer))
        writable = (token for text, token in self._tokenizer.get_vocab().items() if text not in control)
        added = (token for text in self._samples() for token in self._tokens.encode_anew(text))
        highest = max(chain(writable, added), default=0)
        return highest, str(self._tokenizer.convert_ids_to_tokens(highest))

    def render(
        self, *, persona: str | None, runtime_text: str | None, history: Sequence[Message], utterance: str
    ) -> Prompt:
        """Render a whole prompt, within all budgets.

        Oldest messages go first, in steps (`_stable_start`), and which ones go does not depend on the utterance. Of an
        utterance over its budget the latest tail is kept.

        Raises:
            PersonaTooLongError: the persona is over its budget, or the system message leaves no room for an utterance.
        """
        system = self._system(persona, runtime_text)
        kept = self._trim_history(system, history)
        said = self._tokens.escaped_tail(utterance, self._budgets.utterance)
        text = self._text(system, kept, said)
        tokens = self._tokens.encode_prompt(text)
        if len(tokens) > self._budgets.input:
            limit = self._budgets.input - (len(tokens) - len(self._tokens.encode(system)))
            raise PersonaTooLongError(len(self._tokens.encode(system)), max(0, limit))
        return Prompt(tokens, len(kept), self._template.begun_of(text))

    def render_inline(
        self, *, persona: str | None, runtime_text: str | None, history: Sequence[Message], utterance: str
    ) -> Prompt | None:
        """`render` for a caller that must not be held up: None where it would take longer than a hop to a thread.

        A conversation that goes on is quick, since little more than its utterance has not been tokenized before.

        Raises:
            PersonaTooLongError: as `render`.
        """
        if len(history) > INLINE_MESSAGES:
            return None
        texts = (persona or "", runtime_text or "", utterance, *(message.content for message in history))
        if sum(map(len, texts)) > INLINE_CHARACTERS:
            return None
        try:
            return self._tokens.with_limit(
                INLINE_NEW_CHARACTERS,
                lambda: self.render(persona=persona, runtime_text=runtime_text, history=history, utterance=utterance),
            )
        except TokenizeLimitError:
            return None

    def render_prefix(
        self, *, persona: str | None, runtime_text: str | None, history: Sequence[Message] | None
    ) -> list[int]:
        """Token ids that every later `render` with the same persona, runtime text and history starts with.

        With `history` None: those that every render with the persona starts with, whatever history follows.

        Raises:
            PersonaTooLongError: as `render`.
        """
        system = self._system(persona, runtime_text)
        kept = self._trim_history(system, history or ())
        if history is None:
            renderings = [self._compose(system, [], probe) for probe in PROBES]
            renderings += [self._compose(system, [Message(role, "a")], "a") for role in ("user", "assistant")]
        else:
            renderings = [self._compose(system, kept, probe) for probe in PROBES]
        return _common_prefix(renderings)

    def _system(self, persona: str | None, runtime_text: str | None) -> str:
        for text, limit in ((persona or "", self._budgets.persona), (runtime_text or "", self._budgets.input)):
            if (excess := self._tokens.known_excess(text, limit)) is not None:
                raise PersonaTooLongError(excess, limit)
        persona = self._tokens.escaped(persona or "")
        system = "\n\n".join(part for part in (persona, self._tokens.escaped(runtime_text or "")) if part)
        for text, limit in ((persona, self._budgets.persona), (system, self._budgets.input)):
            # A token is at least one byte: most texts are known to fit without being tokenized for that.
            if len(text.encode()) > limit and (found := self._tokens.count_to(text, limit)) > limit:
                raise PersonaTooLongError(found, limit)
        return system

    def _trim_history(self, system: str, history: Sequence[Message]) -> list[Message]:
        # The whole utterance budget is set aside, so that a prefix warmed before the utterance is known stays valid.
        room = self._budgets.input - self._budgets.utterance - BOUNDARY_TOKENS
        minimum = self._minimum(system)
        if minimum > room:
            found = len(self._tokens.encode(system))
            raise PersonaTooLongError(found, max(0, room - (minimum - found)))
        if not history:
            return []
        start, left, escaped = self._first_that_fits(history, room - minimum)
        while True:
            kept = escaped[len(escaped) - (len(history) - start) :]
            # Far from the limit nothing needs to be composed to know that it fits.
            most = len(kept) * (BOUNDARY_TOKENS + self._most_overhead - self._overhead) + self._opening
            if most <= left or len(self._compose(system, kept, "")) <= room:
                return kept
            start += _step(len(history) - start)

    def _measure_minimum(self, system: str) -> int:
        """Tokens of a prompt with this system message and nothing said."""
        return len(self._compose(system, [], ""))

    def _first_that_fits(self, history: Sequence[Message], room: int) -> tuple[int, int, list[Message]]:
        """Where a history begins so that all of it is within the history budget and `room`.

        Returns:
            index of its oldest message; what of the room is left; and its messages, their marks broken up, perhaps with
            older ones before them.
        """
        budget = self._budgets.history
        escaped: list[Message] = []
        for message in reversed(history):
            limit = min(budget, room - self._overhead)
            if self._tokens.known_excess(message.content, max(0, limit)) is not None:
                break
            text = self._tokens.escaped(message.content)
            cost = self._tokens.count_to(text, limit) if limit >= 0 else 1
            if cost > limit:
                break
            budget -= cost
            room -= cost + self._overhead
            escaped.append(Message(message.role, text))
        escaped.reverse()
        return _stable_start(len(history) - len(escaped), len(history)), room, escaped

    def _compose(self, system: str, history: Sequence[Message], utterance: str) -> list[int]:
        return self._tokens.encode_prompt(self._text(system, history, utterance))

    def _text(self, system: str, history: Sequence[Message], utterance: str) -> str:
        messages = [(message.role, message.content) for message in history]
        return self._template.render(system, [*messages, ("user", utterance)])

    def _samples(self) -> list[str]:
        turns = [("user", "One, 2 "), ("assistant", "  x\n"), ("user", "é\n\n🙂"), ("assistant", "y"), ("user", "z")]
        return [self._template.render(system, turns) for system in ("", "Be brief.\n")]

    def _message_overheads(self) -> tuple[int, int]:
        """Tokens that the template adds to one message: on average over both sides, and at most."""
        user, reply = ("user", "a"), ("assistant", "a")

        def length(*turns: TemplateMessage) -> int:
            return len(self._tokens.encode_anew(self._template.render("", [*turns, user])))

        base = length(user, reply)
        both = max(0, length(user, reply, user, reply) - base - 2)
        # One side may have all of it, and neighbours may have what no exchange has.
        most = max(both, length(user, reply, user, user) - length(user, reply, user), length(user, reply, reply) - base)
        return (both + 1) // 2, most


def _step(messages: int) -> int:
    """How many messages go at once: at most a third of them. Steps under 4 would change the prompt at every turn."""
    return next((step for step in (16, 8, 4) if step <= messages // 3), 1)


def _stable_start(start: int, length: int) -> int:
    """Where a history that does not fit begins.

    Dropping the oldest turn at each new one would change the prompt right after the persona every time, and nothing of
    the history would come out of the prefix cache. So the beginning moves in steps: it stays at a multiple of the step
    until the history has grown by that many messages. This needs no memory, as long as a history grows at its end.
    """
    if start == 0:
        return 0
    step = _step(length - start)
    return min(length, -(-start // step) * step)


def _common_prefix(sequences: Sequence[list[int]]) -> list[int]:
    shortest = min(sequences, key=len)
    for index, token in enumerate(shortest):
        if any(sequence[index] != token for sequence in sequences):
            return shortest[:index]
    return shortest
