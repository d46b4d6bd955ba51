"""What a message is told that is not done."""

from __future__ import annotations

from runtime.deployment.models import Chat
from runtime.turns.outbox import Outbox
from runtime.turns.principal import Principal
from runtime.wire import messages
from runtime.wire.refusals import refusal

NO_SESSION = (
    "This connection has no such session: send `start` first, or name a `session_id` that is still kept and that no "
    "other connection has."
)
# What a client is told of something that a server which goes away does not do.
GOES_AWAY = "The server goes away: reconnect, and send this again."


class Refusing:
    """Refuses one connection's messages."""

    def __init__(self, principal: Principal, outbox: Outbox) -> None:
        self._principal = principal
        self._outbox = outbox

    def refuse(self, message: messages.Inbound, code: str, text: str, retry_in: int | None = None) -> None:
        """Say that a message is not done."""
        self._outbox.put(refusal(message, code, text, retry_in))

    def no_session(self, message: messages.Inbound) -> None:
        """Say that there is no session that the message could mean."""
        self.refuse(message, "no_active_session", NO_SESSION)

    async def too_long(self, chat: Chat, persona: str, runtime_text: str, message: messages.Inbound) -> bool:
        """Say so where a system prompt is too long; return whether it is."""
        excess = await chat.persona_excess(persona, runtime_text, self._principal.cache_salt)
        if excess is not None:
            self.refuse(message, "chat_prompt_too_long", str(excess))
        return excess is not None
