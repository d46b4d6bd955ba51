"""A framework's conversation over a talk: contexts in, the events of replies out."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from yap_client.arguments import Sampling
from yap_client.events import Ack, Done, Interrupted, ToolCall, TurnEvent
from yap_client.frameworks.context import Comparison, Context, Plan, in_order
from yap_client.talk import Talk
from yap_client.turn import Turn

# A turn whose connection was lost before anything of its reply had come is said again, so often.
MOST_ATTEMPTS = 3


class Conversation:
    """Answers contexts over one talk, and sends what the server does not have.

    Args:
        talk: over which it goes.
        prefix: precedes a tool's result in the prompt; empty where the server's own does.
    """

    def __init__(self, talk: Talk, prefix: str = "") -> None:
        self.talk = talk
        self._prefix = prefix
        self._comparison = Comparison(prefix)  # of contexts with what was said
        self._turn: Turn | None = None  # the last one
        self._utterance = ""  # what it answers
        self._started = Context()  # what the last start was about
        self._tuned: frozenset[str] = frozenset()  # what of the sampling was ever set

    def asked(self, call_id: str) -> None:
        """Take note of a call that the server asks for."""
        self._comparison.asked(call_id)

    def fits(self, context: Context) -> bool:
        """Whether the server has what was said before a context."""
        return not self._plan(context).replaces

    def can_draw(self, sampling: Sampling) -> bool:
        """Whether replies can be drawn so: what a session was once told of its sampling cannot be unsaid."""
        return self._tuned <= sampling.keys()

    def prepare(self, context: Context, sampling: Sampling) -> bool:
        """Have the reply begun to a context that will probably be asked about. The history gets nothing of it.

        Returns:
            Whether the server was asked: the results of tools are never answered ahead.
        """
        plan = self._plan(context)
        if plan.results:
            return False
        return self.talk.prepare(
            plan.utterance,
            heard=plan.heard,
            history=self._comparison.messages(plan.before) if plan.replaces else None,
            sampling=sampling,
            runtime_text=context.runtime_text or None,
            persona=context.persona,
            screen_checked_prefix=self._prefix or None,
        )

    async def reply(self, context: Context, sampling: Sampling) -> AsyncGenerator[TurnEvent, None]:
        """Yield the events of a reply to a context. Who leaves early, or is cancelled, ends the turn on the server."""
        for attempt in range(1, MOST_ATTEMPTS + 1):
            turn, decides = self._say(context, sampling)
            come, again = False, False
            try:
                async for event in turn:
                    come = come or not isinstance(event, (Ack, Interrupted))
                    again = isinstance(event, Interrupted) and not come and attempt < MOST_ATTEMPTS
                    # A tool's result is answered without another decision, also where it goes as a start.
                    if not again and (decides or not isinstance(event, ToolCall)):
                        yield event
            finally:
                turn.cancel()
            if not again:
                return

    def _plan(self, context: Context) -> Plan:
        # What becomes of a turn that was cancelled is known when its end has come. Until then all is sent.
        over = self._turn is None or self._turn.over
        transcript = self.talk.transcript
        ended = self._turn.ended if self._turn is not None else None
        if self._turn is not None:
            context = in_order(context, self._utterance, self._turn.text)
        return self._comparison.plan(
            context,
            transcript.messages if over and transcript.complete else None,
            transcript.reply,
            settled=isinstance(ended, Done) and ended.usage is not None,
        )

    def _say(self, context: Context, sampling: Sampling) -> tuple[Turn, bool]:
        plan, comparison, started = self._plan(context), self._comparison, self._started
        same = (started.persona, started.runtime_text) == (context.persona, context.runtime_text)
        if plan.results and not plan.replaces and same:
            turn = self.talk.followup(plan.utterance, heard=plan.heard)
        else:
            turn = self.talk.say(
                comparison.text(plan.utterance) if plan.results else plan.utterance,
                heard=plan.heard,
                history=comparison.messages(plan.before) if plan.replaces else None,
                sampling=sampling,
                runtime_text=context.runtime_text or None,
                persona=context.persona,
                screen_checked_prefix=self._prefix or None,
            )
            self._started = context
            self._tuned |= sampling.keys()
        comparison.took(plan)
        self._turn, self._utterance = turn, plan.utterance
        return turn, not plan.results
