"""Calling a chat template, which may refuse: content in the form that it takes, and what it is told beside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

TemplateMessage = tuple[str, str]
"""Role (`user` or `assistant`) and content."""

# What is told of a template's own reason, in characters; and what jinja2 calls the file of a template that has none.
LONGEST_REASON = 160
TEMPLATE_FILE = "<template>"

# What `apply_chat_template` takes for itself, and what transformers gives every template.
RESERVED = frozenset(
    {
        *("messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
        *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs", "bos_token", "eos_token", "raise_exception", "range"),
        *("namespace", "strftime_now", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"),
    }
)


class TemplateCall:
    """Renders conversations as they are.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Attributes:
        source: the template's text.
        parts: whether content is a list of parts.
        empty: stands for empty content.
        told: variables beside the conversation.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401 - transformers is untyped to us
        self._tokenizer = tokenizer
        self.source = str(tokenizer.chat_template)
        self.parts = False
        self.empty = ""
        self.told: dict[str, Any] = {}
        self._short: _ShortWay | None = None  # none where the template is called through transformers

    def shorten(self, samples: Sequence[Sequence[TemplateMessage]]) -> None:
        """Call the template itself from now on, where it says the same of samples as through transformers.

        To be called when everything is known that it is told: that is put together once.
        """
        self._short = None
        asked = [(self.conversation(turns), reply_begins) for turns in samples for reply_begins in (True, False)]
        long = [self.attempt_conversation(messages, reply_begins=begins) for messages, begins in asked]
        try:
            self._short = _ShortWay(self.source, {**self._tokenizer.special_tokens_map, **self.told})
        except (ImportError, AttributeError, TypeError):
            return  # a transformers, or a jinja2, of another build
        if long != [self.attempt_conversation(messages, reply_begins=begins) for messages, begins in asked]:
            self._short = None

    def apply(self, turns: Iterable[TemplateMessage], *, reply_begins: bool = True) -> str:
        """The conversation as text. Raises what the template raises."""
        return self._apply(self.conversation(turns), reply_begins)

    def attempt(
        self,
        turns: Iterable[TemplateMessage],
        *,
        reply_begins: bool = True,
        **told: Any,  # noqa: ANN401
    ) -> str | None:
        """The conversation as text; none where the template refuses it, or stumbles over it."""
        return self.attempt_conversation(self.conversation(turns), reply_begins=reply_begins, **told)

    def attempt_conversation(
        self,
        conversation: list[dict[str, Any]],
        *,
        reply_begins: bool = True,
        **told: Any,  # noqa: ANN401
    ) -> str | None:
        """Render messages as the template sees them, as `attempt` does."""
        try:
            return self._apply(conversation, reply_begins, **told)
        except Exception:  # noqa: BLE001 - a template raises whatever it stumbles over
            return None

    def conversation(self, turns: Iterable[TemplateMessage]) -> list[dict[str, Any]]:
        """Messages as the template sees them."""
        return [{"role": role, "content": self._content(content)} for role, content in turns]

    def variables(self) -> list[str]:
        """Names that the template takes from outside."""
        from jinja2 import meta

        environment = _compiled(self.source).environment
        found: set[str] = meta.find_undeclared_variables(environment.parse(self.source))
        return sorted(found - RESERVED)

    def _content(self, text: str) -> str | list[Mapping[str, str]]:
        text = text or self.empty
        return [{"type": "text", "text": text}] if self.parts else text

    def _apply(self, conversation: list[dict[str, Any]], reply_begins: bool, **told: Any) -> str:  # noqa: ANN401
        if self._short is not None and conversation and not told:
            return self._short.render(conversation, reply_begins)
        given = {**self.told, **told}
        return str(
            self._tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=reply_begins, **given
            )
        )


class _ShortWay:
    """The template as jinja2 compiled it, in transformers' own environment.

    Of what `apply_chat_template` does around it, and jinja2's `render`, most depends on the tokenizer alone: the
    variables that are the same for every conversation are put together once here.
    """

    def __init__(self, source: str, told: Mapping[str, Any]) -> None:
        template = _compiled(source)
        if template.environment.is_async:
            raise TypeError("expected a template that is rendered at once")
        self._context: Callable[..., Any] = template.new_context
        self._blocks: Callable[[Any], Iterable[str]] = template.root_render_func
        self._joined: Callable[[Iterable[str]], str] = template.environment.concat
        # As jinja2 has them: what is given goes before what every template has.
        self._common = {**template.globals, "tools": None, "documents": None, **told}

    def render(self, conversation: list[dict[str, Any]], reply_begins: bool) -> str:
        variables = self._common.copy()
        variables["messages"] = conversation
        variables["add_generation_prompt"] = reply_begins
        return self._joined(self._blocks(self._context(variables, True)))  # it holds what all templates have


def _compiled(source: str) -> Any:  # noqa: ANN401 - transformers is untyped to us
    """A template, compiled as transformers does, which keeps it."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(source)


def reason_of(error: BaseException) -> str:
    """Why a template refuses, in its own words: one line, with the number of the template's where it is known.

    No `;` is in it: what stands behind one is the next step, in what the runtime refuses.
    """
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == TEMPLATE_FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    text = " ".join(str(error).split()).replace(";", ",") or type(error).__name__
    text = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"
    return f"line {line}: {text}" if line is not None else text


def in_order(text: str | None, *markers: str) -> bool:
    """Whether a text holds markers one after the other."""
    if text is None:
        return False
    places = [text.find(marker) for marker in markers]
    return -1 not in places and places == sorted(places)
