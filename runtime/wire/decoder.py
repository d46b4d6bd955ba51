"""Text frames in, validated messages out.

`Decoder.decode` returns one of the messages of `runtime.wire.messages` or raises its `Rejected`, which carries
everything that the one answering frame needs. There is no third way: any text gives one or the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec

from runtime.wire.fields import Fields, shown
from runtime.wire.json_text import read_json
from runtime.wire.messages import (
    GENDERS,
    IDENTITIES,
    MAX_CHARS,
    MAX_IDENTIFIER_CHARS,
    MAX_PREFIX_CHARS,
    Cancel,
    ChatPrompt,
    End,
    Followup,
    Grammar,
    Heard,
    Inbound,
    Ping,
    Pong,
    Prepare,
    Rejected,
    Start,
    WarmHistory,
    WarmPersona,
)


class Decoder:
    """Turns text frames into messages."""

    def __init__(self, grammar: Grammar | None = None) -> None:
        self._grammar = grammar or Grammar()
        self._readers: dict[str, Callable[[Fields], Inbound]] = {
            "start": self._start,
            "prepare": lambda fields: Prepare(fields.request_id, self._start(fields)),
            "followup": self._followup,
            "chat_prompt": self._chat_prompt,
            "warm_persona": self._warm_persona,
            "warm_history": self._warm_history,
            "heard": self._heard,
            "cancel": lambda fields: Cancel(fields.request_id),
            "end": lambda fields: End(fields.request_id),
            "ping": lambda fields: Ping(fields.request_id),
            "pong": lambda fields: Pong(fields.request_id),
        }

    def decode(self, text: str) -> Inbound:
        """One frame's message.

        Raises:
            Rejected: with the contract's error code.
        """
        bare = text.strip()
        if bare == self._grammar.cancel_sentinel:
            return Cancel()
        if bare == self._grammar.end_sentinel:
            return End()
        fields = Fields(self._object(text))
        try:
            # First: how a message is refused, and what that counts against, depends on what it is.
            fields.kind = kind = self._kind(fields)
            fields.request_id = fields.identifier()
            if kind is None:
                raise self._no_kind(fields)
            message = self._readers[kind](fields)
            unknown = fields.unknown(kind)
            return replace(message, warnings=unknown) if unknown else message
        except Rejected as rejected:
            rejected.request_id = fields.request_id
            rejected.kind = fields.kind
            raise

    def _object(self, text: str) -> dict[str, object]:
        try:
            raw = read_json(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise _not_an_object("no JSON") from None
        if not isinstance(raw, dict):
            raise _not_an_object(shown(raw))
        return raw

    def _kind(self, fields: Fields) -> str | None:
        """The message's type; none where it has none that is known."""
        kind = fields.get("type")
        if kind is None:
            return next((word for word in ("cancel", "end") if fields.get(word) is True), None)
        word = kind.strip().lower() if isinstance(kind, str) else None
        return word if word in self._readers else None

    def _no_kind(self, fields: Fields) -> Rejected:
        kind = fields.get("type")
        if kind is not None and not isinstance(kind, str):
            return fields.invalid("type", "a string")
        word = kind.strip().lower() if kind is not None else ""
        if not word:
            return fields.missing("type", "the message's type")
        expected, found = f"one of {', '.join(self._readers)}", shown(word)
        message = f"type: expected {expected}, found {found}"
        return Rejected("unknown_message_type", message, field="type", expected=expected, found=found)

    def _start(self, fields: Fields) -> Start:
        session = fields.session()
        if not session:
            raise fields.missing("session_id", "a string that is not empty")
        fields.synonyms("personalities")
        return Start(
            request_id=fields.request_id,
            session_id=session,
            gender=fields.choice("gender", GENDERS),
            personality=fields.style(),
            persona=fields.text("persona_text", "chat_prompt"),
            user_identity=fields.choice("user_identity", IDENTITIES),
            history=fields.history(),
            utterance=fields.text("user_utterance") or "",
            runtime_text=fields.text("runtime_text") or "",
            sampling=fields.sampling(self._grammar, flat=True),
            check_screen_prefix=fields.text("check_screen_prefix", limit=MAX_PREFIX_CHARS),
            screen_checked_prefix=fields.text("screen_checked_prefix", limit=MAX_PREFIX_CHARS),
            traceparent=fields.text("traceparent", limit=MAX_IDENTIFIER_CHARS),
        )

    def _followup(self, fields: Fields) -> Followup:
        analysis = fields.text("analysis_text")
        if not analysis or analysis.isspace():
            raise fields.missing("analysis_text", "a string that is not empty")
        sampling = fields.sampling(self._grammar, flat=True)
        traceparent = fields.text("traceparent", limit=MAX_IDENTIFIER_CHARS)
        return Followup(fields.request_id, fields.session(), analysis, sampling, traceparent)

    def _chat_prompt(self, fields: Fields) -> ChatPrompt:
        persona = fields.required_text("persona_text", "chat_prompt")
        return ChatPrompt(
            fields.request_id, fields.session(), persona, fields.choice("gender", GENDERS), fields.style()
        )

    def _heard(self, fields: Fields) -> Heard:
        text = fields.text("text")
        chars = fields.whole("chars", 0, MAX_CHARS)
        if text is None and chars is None:
            raise fields.missing("text", "what was heard of the reply, or its length in `chars`")
        return Heard(fields.request_id, fields.session(), text, chars)

    def _warm_persona(self, fields: Fields) -> WarmPersona:
        return WarmPersona(fields.request_id, fields.required_text("chat_prompt", "persona_text"))

    def _warm_history(self, fields: Fields) -> WarmHistory:
        history = fields.history()
        if history is None:
            raise fields.missing("history", "a list of {role, content}, or a transcript in history_text")
        persona = fields.text("persona_text", "chat_prompt")
        return WarmHistory(fields.request_id, fields.session(), history, persona, fields.text("runtime_text") or "")


def _not_an_object(found: str) -> Rejected:
    expected = "one JSON object in a text frame"
    return Rejected("invalid_message", f"expected {expected}, found {found}", expected=expected, found=found)
