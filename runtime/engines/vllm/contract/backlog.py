"""Steps that wait: where this process is behind the engine, what the engine has made meanwhile is taken as one step.

The engine does not wait for who listens. Where a GPU makes more tokens than one process can send one by one, its steps
wait here, each for the one before it. Taken together a stream's tokens are one text, one frame and one write, which is
most of what they cost, so the process keeps up. Who counts tokens as they come is told each by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import attrgetter, is_
from typing import TYPE_CHECKING

from runtime.engines.vllm.contract.table import ONE_BY_ONE, seams

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
    from vllm.v1.engine.async_llm import AsyncLLM

# What two outputs of one request become together. All else that an earlier one says would be lost.
JOINED = frozenset({"request_id", "new_token_ids", "events", "trace_headers", "prefill_stats"})
# What a step says beside its outputs; a step that says anything else is handed out as it is.
OF_STEP = frozenset({"engine_index", "outputs", "timestamp", "finished_requests"})

# So many steps at most: what is handled in one go holds up the loop.
MOST_STEPS = 8

Apart = Callable[[str], bool]


def take_together(llm: AsyncLLM) -> None:
    """Have vLLM's handler of outputs be given all steps that wait, as one.

    Not with vLLM's statistics, which want to see every step, nor where nobody can be told apart (`requests.add`).
    """
    if not seams.holds("waiting steps") or not seams.holds("direct tokens"):
        return
    client, states = llm.engine_core, llm.output_processor.request_states
    one = client.get_output_async
    left: list[EngineCoreOutputs | Exception] = []  # what could not be joined to what was handed out last

    def apart(request_id: str) -> bool:
        return getattr(getattr(states.get(request_id), "queue", None), ONE_BY_ONE, False)

    async def get() -> EngineCoreOutputs:
        steps = left.pop() if left else await one()
        if isinstance(steps, Exception):
            raise steps
        queue = client.outputs_queue
        joined = 1
        while not left and not queue.empty() and joined < MOST_STEPS:
            joined += 1
            try:
                later = await one()  # waits for nothing: it is there, and nobody else takes it
            except Exception as error:  # noqa: BLE001 - raised when what came before it has been told
                left.append(error)
                break
            if not join(steps, later, apart):
                left.append(later)
        return steps

    client.get_output_async = get


def join(steps: EngineCoreOutputs, later: EngineCoreOutputs, apart: Apart = lambda _: False) -> bool:
    """Add a later step to earlier ones, changing these; false, and nothing changed, where it says more than outputs.

    A request's outputs become one, unless `apart` says that each is wanted, or something of the earlier would be lost:
    then the later one stands behind it, and is handled after it.
    """
    of_step, of_output = _others()
    if steps.engine_index != later.engine_index or not (of_step(steps) and of_step(later)):
        return False
    outputs = steps.outputs
    places = {output.request_id: place for place, output in enumerate(outputs)}  # of each one's last
    for output in later.outputs:
        place = places.get(output.request_id)
        if place is None or not of_output(outputs[place]) or apart(output.request_id):
            places[output.request_id] = len(outputs)
            outputs.append(output)
        else:
            _continue(outputs[place], output)
            outputs[place] = output
    steps.timestamp = later.timestamp
    if later.finished_requests:
        steps.finished_requests = (steps.finished_requests or set()) | later.finished_requests
    return True


def _continue(earlier: EngineCoreOutput, output: EngineCoreOutput) -> None:
    """Make a later output say what an earlier one did as well."""
    output.new_token_ids = [*earlier.new_token_ids, *output.new_token_ids]
    if earlier.events:
        output.events = [*earlier.events, *(output.events or ())]
    output.trace_headers = output.trace_headers or earlier.trace_headers
    output.prefill_stats = output.prefill_stats or earlier.prefill_stats


@cache
def _others() -> tuple[Callable[[EngineCoreOutputs], bool], Callable[[EngineCoreOutput], bool]]:
    """Whether a step, and an output, say nothing but what can be joined."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

    return _silent(EngineCoreOutputs, OF_STEP), _silent(EngineCoreOutput, JOINED)


def _silent(struct: type, told: frozenset[str]) -> Callable[[object], bool]:
    """Whether all fields of a struct but some have their defaults, which are `None` and 0: one object each."""
    fields, defaults = struct.__struct_fields__, struct.__struct_defaults__  # type: ignore[attr-defined]
    values = dict(zip(fields[-len(defaults) :], defaults, strict=True))
    names = [name for name in fields if name not in told]
    get, plain = attrgetter(*names), tuple(values[name] for name in names)
    return lambda struct: all(map(is_, get(struct), plain))
