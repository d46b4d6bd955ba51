"""Requests: how they are asked for, what comes back, and the text that vLLM makes of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from runtime.engines.vllm.contract.table import ONE_BY_ONE, seams

if TYPE_CHECKING:
    from tokenizers.decoders import DecodeStream
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer
    from vllm.v1.engine.output_processor import RequestState

# A request that nobody has: ending it makes vLLM's processes look up, and says nothing.
UNKNOWN_REQUEST = "unknown"


def delta_parameters(**arguments: Any) -> SamplingParams:  # noqa: ANN401 - vLLM's own checks them
    """Sampling parameters of requests that tell what each step added.

    vLLM copies them for each request and adds the model's stop tokens. A shallow copy will do (`skip_clone`): what vLLM
    changes inside is the same for every request to one model.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    if seams.holds("shared parameters"):
        arguments["skip_clone"] = True
    return SamplingParams(**arguments, output_kind=RequestOutputKind.DELTA)


def scoring_parameters() -> SamplingParams:
    """Sampling parameters of a request that is told the log-probabilities of its prompt, and nothing else."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    kind = RequestOutputKind.FINAL_ONLY
    return SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False, output_kind=kind)


def prompt(tokens: Sequence[int], cache_salt: str | None = None) -> dict[str, Any]:
    """A prompt of token ids, as vLLM takes one that needs no more work. vLLM counts a salt into its blocks' hashes."""
    whole: dict[str, Any] = {"type": "token", "prompt_token_ids": list(tokens)}
    if cache_salt is not None:
        whole["cache_salt"] = cache_salt
    return whole


def refused() -> type[Exception]:
    """vLLM's error for a request that it does not take; asked for when something was raised, so nothing is kept."""
    if not seams.holds("refusals"):
        return ValueError
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError  # type: ignore[no-any-return]


async def add(
    llm: AsyncLLM,
    request_id: str,
    tokens: Sequence[int],
    params: SamplingParams,
    put: Callable[[Any], None],
    cache_salt: str | None = None,
    *,
    each_token: bool = False,
) -> RequestState | None:
    """Add a request whose outputs and errors vLLM's output handler itself hands to `put`.

    Not `AsyncLLM.generate`: it wakes a task for every token, which costs more than all that is done with the token
    here, and it loses the request when it is cancelled while adding it. With
    `each_token` steps that wait are told one by one (`backlog`).

    Returns:
        What vLLM keeps of the request, as long as it has had no output.
    """
    collector = await llm.add_request(request_id, prompt(tokens, cache_salt), params)
    setattr(collector, ONE_BY_ONE, each_token)
    early = collector.get_nowait()
    collector.put = put
    if early is not None:
        put(early)
        return None
    if not seams.holds("prompt text"):
        return None
    return llm.output_processor.request_states.get(collector.request_id)


async def outputs_of(
    llm: AsyncLLM, request_id: str, tokens: Sequence[int], params: SamplingParams, cache_salt: str | None = None
) -> AsyncGenerator[RequestOutput, None]:
    """A request's outputs, vLLM's own way."""
    async for output in llm.generate(prompt(tokens, cache_salt), params, request_id):
        yield output


def fast_text(state: RequestState) -> FastIncrementalDetokenizer | None:
    """What makes text of a request's reply, where that is vLLM's fast one."""
    found = state.detokenizer
    return found if isinstance(found, _text_classes()[1]) else None


def ends_in_text(text: FastIncrementalDetokenizer, tokens: list[int]) -> str:
    """The text of a prompt's last tokens, as the reply's will be made."""
    return str(text.tokenizer.decode(tokens, skip_special_tokens=text.skip_special_tokens))


def begin_after(text: FastIncrementalDetokenizer, tokens: list[int]) -> None:
    """Let a reply's text begin after these tokens, instead of after the whole prompt."""
    text.stream = _text_classes()[0](ids=tokens, skip_special_tokens=text.skip_special_tokens)


@cache
def _text_classes() -> tuple[type[DecodeStream], type[FastIncrementalDetokenizer]]:
    """Imported once: statements that import cost more than the rest when a turn begins in an idle process."""
    from tokenizers.decoders import DecodeStream
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    return DecodeStream, FastIncrementalDetokenizer


def wake(llm: AsyncLLM) -> Coroutine[Any, Any, None] | None:
    """What has vLLM's processes look up, when they wait asleep for a request; none when they do not."""
    if not seams.holds("waking") or llm.errored:
        return None
    try:
        silent = not llm.output_processor.has_unfinished_requests()
        return llm.engine_core.abort_requests_async([UNKNOWN_REQUEST]) if silent else None
    except (AttributeError, TypeError) as error:
        seams.give_up("waking", repr(error))
        return None


def ask_core(llm: AsyncLLM, method: str) -> Awaitable[Any]:
    """The answer of a method that was added to `EngineCore` (`answer`), given by the engine's own loop."""
    return llm.engine_core.call_utility_async(method)  # type: ignore[no-any-return]


def block_tokens(llm: AsyncLLM) -> int:
    """Tokens in a block of the prefix cache, which keeps whole blocks alone."""
    return int(llm.vllm_config.cache_config.block_size) if seams.holds("block size") else 1
