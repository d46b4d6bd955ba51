"""What a turn reads and says: budgets, sampling, the decision before it."""

from __future__ import annotations

from pydantic_settings import BaseSettings

from runtime import defaults
from runtime.deployment.settings.declaring import open_var, var
from runtime.engines import Sampling
from runtime.wire.messages import DEFAULT_BOUNDS, MAX_PREFIX_CHARS, Bound

SAMPLING = Sampling()


class ReplySettings(BaseSettings):
    """Prompt and reply, sampling, tool decision."""

    # Prompt and reply
    chat_prompt_max_tokens: int | None = open_var(
        defaults.PERSONA_TOKENS, "persona budget; {} or what the artifact allows", unit="tokens", ge=1
    )
    history_max_tokens: int | None = open_var(
        defaults.HISTORY_TOKENS, "history budget; {} or what the artifact allows", unit="tokens", ge=0
    )
    user_utt_max_tokens: int | None = open_var(
        defaults.UTTERANCE_TOKENS, "utterance budget; {} or what the artifact allows", unit="tokens", ge=1
    )
    chat_max_len: int | None = open_var(
        defaults.INPUT_TOKENS, "input budget; {} or what the artifact allows", unit="tokens", ge=1
    )
    chat_max_out: int | None = open_var(
        defaults.OUTPUT_TOKENS, "longest reply; {} or what the artifact allows", unit="tokens", ge=1
    )
    thinking_max_tokens: int | None = open_var(
        defaults.THINKING_TOKENS,
        "tokens that a model which always thinks may think, beside `CHAT_MAX_OUT`; {} or what the artifact was proven "
        "with; 0: such a model is refused",
        unit="tokens",
        ge=0,
    )
    gen_timeout_s: float = var(defaults.GENERATION_TIMEOUT_S, "longest turn", unit="s", gt=0)
    prepare_max_tokens: int = var(
        defaults.PREPARE_TOKENS,
        "how much of a reply a `prepare` makes ahead; the rest follows its `start`; 0: `prepare` does nothing",
        unit="tokens",
        ge=0,
    )
    prepare_ttl_s: float = var(
        defaults.PREPARE_TTL_S, "how long what a `prepare` made is held for its `start`", unit="s", gt=0
    )
    check_screen_prefix: str = var(
        "MUST CHECK SCREEN:", "precedes the utterance after a tool decision yes", max_length=MAX_PREFIX_CHARS
    )
    screen_checked_prefix: str = var(
        "ON THE SCREEN NOW:", "precedes the analysis in a `followup`", max_length=MAX_PREFIX_CHARS
    )

    # Sampling: defaults and bounds
    chat_temperature: float = var(SAMPLING.temperature, "default temperature")
    chat_temperature_min: float = var(DEFAULT_BOUNDS["temperature"].low, "lowest accepted temperature", ge=0)
    chat_temperature_max: float = var(DEFAULT_BOUNDS["temperature"].high, "highest accepted temperature")
    chat_top_p: float = var(SAMPLING.top_p, "default top_p")
    chat_top_p_min: float = var(DEFAULT_BOUNDS["top_p"].low, "lowest accepted top_p", gt=0)
    chat_top_p_max: float = var(DEFAULT_BOUNDS["top_p"].high, "highest accepted top_p", le=1)
    chat_top_k: int = var(SAMPLING.top_k, "default top_k; 0: all tokens")
    chat_top_k_min: int = var(int(DEFAULT_BOUNDS["top_k"].low), "lowest accepted top_k", ge=0)
    chat_top_k_max: int = var(int(DEFAULT_BOUNDS["top_k"].high), "highest accepted top_k")
    chat_min_p: float = var(SAMPLING.min_p, "default min_p")
    chat_min_p_min: float = var(DEFAULT_BOUNDS["min_p"].low, "lowest accepted min_p", ge=0)
    chat_min_p_max: float = var(DEFAULT_BOUNDS["min_p"].high, "highest accepted min_p", le=1)
    chat_repetition_penalty: float = var(SAMPLING.repetition_penalty, "default repetition_penalty; 1: none")
    chat_repetition_penalty_min: float = var(
        DEFAULT_BOUNDS["repetition_penalty"].low, "lowest accepted repetition_penalty", gt=0
    )
    chat_repetition_penalty_max: float = var(
        DEFAULT_BOUNDS["repetition_penalty"].high, "highest accepted repetition_penalty", le=2
    )
    chat_presence_penalty: float = var(SAMPLING.presence_penalty, "default presence_penalty")
    chat_presence_penalty_min: float = var(
        DEFAULT_BOUNDS["presence_penalty"].low, "lowest accepted presence_penalty", ge=-2
    )
    chat_presence_penalty_max: float = var(
        DEFAULT_BOUNDS["presence_penalty"].high, "highest accepted presence_penalty", le=2
    )
    chat_frequency_penalty: float = var(SAMPLING.frequency_penalty, "default frequency_penalty")
    chat_frequency_penalty_min: float = var(
        DEFAULT_BOUNDS["frequency_penalty"].low, "lowest accepted frequency_penalty", ge=-2
    )
    chat_frequency_penalty_max: float = var(
        DEFAULT_BOUNDS["frequency_penalty"].high, "highest accepted frequency_penalty", le=2
    )

    # Tool decision
    tool_decision_threshold: float | None = open_var(
        defaults.TOOL_THRESHOLD, "probability from which the decision is yes; the artifact's, else {}", ge=0, le=1
    )
    tool_history_tokens: int | None = open_var(
        defaults.TOOL_TOKENS, "what the classifier sees at most; {} or the model's window", unit="tokens", ge=1
    )
    tool_timeout_s: float = var(
        defaults.TOOL_TIMEOUT_S, "time after which an undecided classifier means no", unit="s", gt=0
    )

    def bounds(self) -> dict[str, Bound]:
        """The sampling parameters' ranges."""
        return {
            name: Bound(getattr(self, f"chat_{name}_min"), getattr(self, f"chat_{name}_max"), bound.whole)
            for name, bound in DEFAULT_BOUNDS.items()
        }

    def sampling(self, max_tokens: int) -> Sampling:
        """The server's default sampling."""
        return Sampling(**{name: getattr(self, f"chat_{name}") for name in DEFAULT_BOUNDS}, max_tokens=max_tokens)
