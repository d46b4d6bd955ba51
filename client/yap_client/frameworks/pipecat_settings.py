"""What of a reply can be set in Pipecat, and what this server is asked for then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from pipecat.services.settings import LLMSettings
from pipecat.utils.types import NOT_GIVEN, NotGiven, is_given

from yap_client.arguments import Sampling

SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_tokens",
    "stop",
    "seed",
    "sanitize_output",
)


@dataclass
class YapLLMSettings(LLMSettings):
    """Settings that can be changed while a pipeline runs. What is not given is as the server has it.

    Parameters:
        min_p: sampling.
        repetition_penalty: sampling.
        stop: texts that end a reply, at most four.
        sanitize_output: whether replies are made fit to be spoken; the server does it unless told otherwise.
    """

    min_p: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    repetition_penalty: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    stop: list[str] | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    sanitize_output: bool | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)


def sampling_of(settings: YapLLMSettings) -> Sampling:
    """How replies are drawn; what is not given is left to the server."""
    values = {name: given(getattr(settings, name)) for name in SAMPLING}
    values.update((name, value) for name, value in settings.extra.items() if name in SAMPLING)
    return cast("Sampling", {name: value for name, value in values.items() if value is not None})


def given(value: Any) -> Any:  # noqa: ANN401 - of whatever type a setting is
    """A setting's value; None where it was not given."""
    return value if is_given(value) else None
