"""Requests inside TensorRT-LLM: their steps as they come, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runtime.engines import EngineDeadError


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of the engine added to a reply. `reason` is set on the last one."""

    text: str
    tokens: tuple[int, ...]
    reason: str | None


@dataclass(eq=False, slots=True)
class TrtRequest:
    """A request inside TensorRT-LLM.

    Attributes:
        output: TensorRT-LLM's own object.
        steps: what came and was not taken yet, or the error that ended the request.
        aborted: TensorRT-LLM was told to end it.
        finished: TensorRT-LLM has ended it.
    """

    output: Any
    steps: asyncio.Queue[Step | Exception] = field(default_factory=asyncio.Queue)
    aborted: bool = False
    finished: bool = False

    async def next_step(self) -> Step:
        """The next step. Raises what ended the request."""
        step = await self.steps.get()
        if isinstance(step, Exception):
            raise step
        return step

    async def take_steps(self, ended: Callable[[TrtRequest], None]) -> None:
        """Queue its steps until TensorRT-LLM has ended it, aborted or not; then tell `ended`."""
        try:
            async for output in self.output:
                completion = output.outputs[0]
                reason = completion.finish_reason
                self.finished = reason is not None
                step = Step(completion.text_diff, tuple(completion.token_ids_diff), reason)
                self.steps.put_nowait(step if reason in (None, "stop", "length") else ended_early(reason))
            self.steps.put_nowait(ended_early("no reason"))  # nobody reads it after a reason was given
        except ValueError as error:
            self.steps.put_nowait(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it reaches the one who asked
            self.steps.put_nowait(request_error(error) or EngineDeadError(f"TensorRT-LLM failed ({kind_of(error)})"))
        finally:
            self.finished = True
            ended(self)

    def abort(self) -> None:
        """Tell TensorRT-LLM to end it, once, and only while it runs."""
        # Requests never ask for logprobs: aborting one that does crashes TensorRT-LLM 1.2's executor (its issue 10810).
        if not self.finished and not self.aborted:
            self.aborted = True
            self.output.abort()


def ended_early(reason: str) -> EngineDeadError:
    """The error of a request that TensorRT-LLM ended before it was done."""
    return EngineDeadError(f"TensorRT-LLM ended the request itself ({reason})")


def kind_of(error: Exception) -> str:
    """What an error is, to be told to everybody: its class, since texts may quote a prompt.

    The executor's own errors are plain RuntimeErrors from C++, about the GPU and never about words.
    """
    name = type(error).__name__
    return f"{name}: {error}" if type(error) is RuntimeError else name


def request_error(error: Exception) -> ValueError | None:
    """TensorRT-LLM's `RequestError` is about one request, whatever else happens is about the engine."""
    return ValueError(str(error)) if type(error).__name__ == "RequestError" else None
