"""vLLM's detokenizer, kept from reading the whole prompt before a reply's first token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime.engines.vllm import contract

if TYPE_CHECKING:
    from vllm.v1.engine.output_processor import RequestState

# Tokens before the reply that its text may depend on: enough to hold some word beside a template's control tokens.
CONTEXT_TOKENS = 32
# Tokens that one character can take: its bytes.
CHARACTER_TOKENS = 4


def forget_prompt(state: RequestState | None, prompt: Sequence[int]) -> None:
    """Let a reply's text begin after the prompt's last tokens; to be called before the first token of the reply.

    At the first token vLLM's detokenizer makes text of the whole prompt, on the event loop (`python -m tests.benchmarks
    starts` tells how long that takes), of which nothing is used but how the text ends. Tokenizers look back
    no further than the character before, to tell whether a word begins with a space. The context must begin with a
    whole character, or what is broken in it would come out as part of the reply. Where no end of the prompt is text,
    the whole of it is read after all.

    Args:
        state: the request's, none when it has ended.
        prompt: token ids.
    """
    if state is None or len(prompt) <= CONTEXT_TOKENS:
        return
    try:
        _shorten(state, prompt)
    except (AttributeError, TypeError) as error:
        contract.seams.give_up("prompt text", repr(error))


def _shorten(state: RequestState, prompt: Sequence[int]) -> None:
    text = contract.fast_text(state)
    if text is None:
        return
    for length in range(CONTEXT_TOKENS, CONTEXT_TOKENS - CHARACTER_TOKENS, -1):
        tail = list(prompt[-length:])
        end = contract.ends_in_text(text, tail)
        if end.strip() and "\ufffd" not in end:
            contract.begin_after(text, tail)
            return
