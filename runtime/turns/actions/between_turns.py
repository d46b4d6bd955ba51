"""What a connection asks for between turns: another persona, and prefixes to be prefilled."""

from __future__ import annotations

from runtime.deployment.models import Deployment
from runtime.turns.actions.refusing import GOES_AWAY, Refusing
from runtime.turns.actions.warming import Prefix, Warming
from runtime.turns.outbox import Outbox
from runtime.turns.sessions.hold import SessionHold
from runtime.wire import frames, messages


class BetweenTurns:
    """Does for one connection what begins no turn.

    Attributes:
        draining: whether the server goes away; then nothing is prefilled.
    """

    def __init__(
        self, outbox: Outbox, deployment: Deployment, hold: SessionHold, warming: Warming, refusing: Refusing
    ) -> None:
        self._outbox = outbox
        self._deployment = deployment
        self._hold = hold
        self._warming = warming
        self._refusing = refusing
        self.draining = False

    async def set_persona(self, update: messages.ChatPrompt) -> None:
        """Replace the session's persona."""
        session = self._hold.active(update.session_id) or await self._hold.fetch(update.session_id)
        chat, refusing = self._deployment.chat, self._refusing
        if session is None or chat is None:
            refusing.no_session(update)
            return
        if self._hold.shared and self._hold.owned() is not session:
            async with session.lock:
                await self._hold.load(session)
            if session.lost or not self._hold.may_use(session):
                refusing.no_session(update)
                return
        if session.has_persona(update):
            self._answer(update, 204, "no change")
        elif retry := session.updates.wait():
            self._refuse_limited(update, retry)
        elif not await refusing.too_long(chat, update.persona, session.runtime_text, update):
            if retry := session.updates.take():  # those of other connections have come first meanwhile
                self._refuse_limited(update, retry)
                return
            session.set_persona(update)
            self._answer(update, 200, "updated")

    def _refuse_limited(self, update: messages.ChatPrompt, retry: int) -> None:
        text = f"Too many persona updates; try again in {retry} s."
        self._refusing.refuse(update, "chat_prompt_rate_limited", text, retry)

    async def warm_persona(self, warm: messages.WarmPersona) -> None:
        """Prefill a system prompt."""
        await self._warm(Prefix("persona_static", warm.request_id, warm.persona, warnings=warm.warnings), warm)

    async def warm_history(self, warm: messages.WarmHistory) -> None:
        """Prefill a system prompt, the session's where the message has none, and a history."""
        persona = warm.persona
        if persona is None:
            persona = await self._persona_of(warm.session_id)
            if persona is None:
                self._refusing.no_session(warm)
                return
        prefix = Prefix("history", warm.request_id, persona, warm.runtime_text, warm.history, warm.warnings)
        await self._warm(prefix, warm)

    async def _persona_of(self, session_id: str | None) -> str | None:
        """The persona of a session, which is only read, so that it does not matter who owns it; none where none is."""
        if session_id is None:
            owned = self._hold.owned()
            return owned.persona if owned is not None else ""
        # Where other servers may have changed it, the store knows best.
        record = await self._hold.look(session_id) if self._hold.elsewhere(session_id) else None
        if record is not None:
            return record.persona
        session = self._hold.find(session_id)
        return session.persona if session is not None else None

    async def _warm(self, prefix: Prefix, message: messages.Inbound) -> None:
        chat = self._deployment.chat
        if self.draining:
            self._refusing.refuse(message, "draining", GOES_AWAY)
            return
        if chat is not None and not await self._refusing.too_long(chat, prefix.persona, prefix.runtime_text, message):
            self._warming.begin(chat, prefix)

    def _answer(self, update: messages.ChatPrompt, code: int, message: str) -> None:
        self._outbox.put(
            frames.ChatPromptAck(
                to="chat_prompt",
                ok=True,
                code=code,
                message=message,
                warning=list(update.warnings),
                request_id=update.request_id,
            )
        )
