"""What a framework's context asks of the server, beside what the server already has.

Frameworks keep the whole conversation and hand all of it to a model for each reply. This server keeps persona and
history itself. `Comparison.plan` holds a framework's `Context` against the transcript of what the server heard and says
what is to be sent: the next utterance alone, where nothing else was said; how much of the last reply was heard, where
the listener interrupted; the whole history, where somebody changed it. It knows no sockets and no framework.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from yap_client.session import SCREEN_CHECKED_PREFIX, behind
from yap_client.transcript import Message


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool that the server had asked for found out.

    Attributes:
        call_id: the framework's name for the call.
        text: what the model is told.
    """

    call_id: str
    text: str


Item = Message | ToolResult


@dataclass(frozen=True, slots=True)
class Context:
    """What a framework wants answered.

    Attributes:
        persona: the system prompt.
        runtime_text: further instructions; they follow the persona in this turn's prompt alone.
        items: the conversation, oldest first.
    """

    persona: str = ""
    runtime_text: str = ""
    items: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be said for one reply.

    Attributes:
        utterance: the user's words; those of a follow-up are its analysis.
        results: what a follow-up is made of; none in an ordinary turn.
        before: the conversation that it comes behind.
        replaces: whether that is to be sent, because the server has another.
        heard: so many characters are to be kept of the last reply; none where all of it was heard.
    """

    utterance: str
    results: tuple[ToolResult, ...]
    before: tuple[Item, ...]
    replaces: bool = False
    heard: int | None = None


class Comparison:
    """Compares contexts with a transcript, and remembers which of its messages were made of a tool's result.

    Args:
        prefix: precedes a result in a message, as the server does it for a follow-up; empty is the server's own.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix or SCREEN_CHECKED_PREFIX
        self._asked: set[str] = set()  # the calls that the server asked for here
        self._answered: list[tuple[frozenset[ToolResult], str]] = []  # the results of one message, and its text
        self._sure = 0  # so many of them are known to be in the history

    def plan(self, context: Context, held: Sequence[Message] | None, reply: str = "", *, settled: bool = True) -> Plan:
        """Say what is to be sent so that the server answers a context.

        Args:
            context: what is to be answered.
            held: the conversation as the server has it; none where that is not known.
            reply: the last message of it, where that can still be cut.
            settled: whether that reply came to its own end.
        """
        self._confirm(held)
        before, utterance, results = self._split(context.items)
        heard = None if held is None else self._heard(before, held, reply, pending=bool(results) and settled)
        if heard is None:
            return Plan(utterance, results, before, replaces=True)
        return Plan(utterance, results, before, heard=None if heard == len(reply) else heard)

    def asked(self, call_id: str) -> None:
        """Take note of a call that the server asks for: whenever its result comes, it is to be answered."""
        self._asked.add(call_id)

    def took(self, plan: Plan) -> None:
        """Take note of a plan that the server has taken up."""
        if plan.replaces:
            self._answered = [(frozenset((i,)), self.text(i.text)) for i in plan.before if isinstance(i, ToolResult)]
            self._sure = len(self._answered)
        if plan.results:
            self._answered.append((frozenset(plan.results), self.text(plan.utterance)))

    def messages(self, items: Iterable[Item]) -> list[Message]:
        """A conversation as the server is to have it."""
        return [Message("user", self.text(i.text)) if isinstance(i, ToolResult) else i for i in items]

    def text(self, result: str) -> str:
        """A result's text as it stands in a message."""
        return behind(self._prefix, result)

    def _confirm(self, held: Sequence[Message] | None) -> None:
        """Forget the results of a turn that the history does not have: it was cancelled before its first word."""
        if held is not None:
            texts = {message.content for message in held if message.role == "user"}
            if all(text in texts for _, text in self._answered[self._sure :]):
                self._sure = len(self._answered)
        del self._answered[self._sure :]

    def _split(self, items: tuple[Item, ...]) -> tuple[tuple[Item, ...], str, tuple[ToolResult, ...]]:
        """Part a conversation into what was said before, the utterance, and the results that are to be answered."""
        if items and isinstance(items[-1], Message) and items[-1].role == "user":
            return items[:-1], items[-1].content, ()
        answered = {result.call_id for results, _ in self._answered for result in results}
        fresh: list[int] = []
        said_since = False
        for index in reversed(range(len(items))):
            item = items[index]
            if isinstance(item, ToolResult):
                # Frameworks may note the words that came with a call behind its result. Words behind the result of a
                # call that another client was asked for are its answer.
                if item.call_id not in answered and (item.call_id in self._asked or not said_since):
                    fresh.insert(0, index)
            elif item.role == "user":
                break
            else:
                said_since = True
        results = tuple(item for item in (items[index] for index in fresh) if isinstance(item, ToolResult))
        before = tuple(item for index, item in enumerate(items) if index not in fresh)
        return before, "\n".join(result.text for result in results), results

    def _heard(self, before: Sequence[Item], held: Sequence[Message], reply: str, *, pending: bool) -> int | None:
        """How much of the last reply a conversation has, where it is else what the server holds; none where it is not.

        Args:
            pending: whether the framework may note the last reply a moment later.
        """
        if {i for i in before if isinstance(i, ToolResult)} != {r for results, _ in self._answered for r in results}:
            return None
        wanted, has = _runs(i for i in before if isinstance(i, Message)), _runs(self._without_results(held))
        if wanted == has:
            return len(reply)
        mine = _squash(reply)
        if not mine or not has or has[-1][0] != "assistant" or not has[-1][1].endswith(mine):
            return None
        ahead = has[-1][1][: -len(mine)]  # what the assistant said before in a row
        if wanted[: len(has) - 1] != has[:-1] or len(wanted) > len(has):
            return None
        found = ""
        if len(wanted) == len(has):
            role, found = wanted[-1]
            if role != "assistant":
                return None
        if not found.startswith(ahead) or not mine.startswith(found[len(ahead) :]):
            return None
        words = len(found) - len(ahead)
        return len(reply) if pending and words == 0 else _chars(reply, words)

    def _without_results(self, held: Sequence[Message]) -> list[Message]:
        texts = [text for _, text in self._answered]
        kept = []
        for message in held:
            if texts and message.role == "user" and message.content == texts[0]:
                del texts[0]
            else:
                kept.append(message)
        return kept


def in_order(context: Context, utterance: str, said: str) -> Context:
    """A context with the user's words at its end.

    Who interrupts quickly is written down before what was said of the reply that they interrupt.

    Args:
        context: as the framework has it.
        utterance: what the user said before.
        said: what was said of the reply to that.
    """
    if len(context.items) < 2:
        return context
    user, late = context.items[-2:]
    if isinstance(user, ToolResult) or isinstance(late, ToolResult) or (user.role, late.role) != ("user", "assistant"):
        return context
    if user.content == utterance or not _squash(said).startswith(_squash(late.content)):
        return context
    return replace(context, items=(*context.items[:-2], late, user))


def _runs(messages: Iterable[Message]) -> list[tuple[str, str]]:
    """The words without their spaces, with those together that one side said in a row.

    Frameworks put spaces of their own between the words that were spoken, and may keep one reply in several messages.
    """
    runs: list[tuple[str, str]] = []
    for message in messages:
        if text := _squash(message.content):
            if runs and runs[-1][0] == message.role:
                runs[-1] = (message.role, runs[-1][1] + text)
            else:
                runs.append((message.role, text))
    return runs


def _squash(text: str) -> str:
    return "".join(text.split())


def _chars(text: str, words: int) -> int:
    """How many characters of a text hold so many that are no space."""
    for index, char in enumerate(text):
        if words == 0:
            return index
        words -= not char.isspace()
    return len(text)
