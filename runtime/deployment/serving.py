"""The serving plan: from settings and an artifact to what is served, with every problem at once. Pure.

The artifact's limits are facts. A default that does not fit them shrinks to them; a setting that asks for more is
refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtime import defaults
from runtime.artifact import BuildMetadata, ChatModel
from runtime.artifact.lanes import ServedLane, engine_of, lane_of
from runtime.defaults import first_set
from runtime.deployment.classifier import Tool, tools_of
from runtime.deployment.settings import RuntimeSettings, SettingsError
from runtime.engines import EngineOptions
from runtime.text.prompt import Budgets

Mode = Literal["chat", "tool", "both"]

# The contract's budgets, in tokens.
DEFAULT_BUDGETS = Budgets()


@dataclass(frozen=True, slots=True)
class ChatServing:
    """The chat model's budgets and engine options. Lengths in tokens.

    Attributes:
        budgets: of a prompt's parts.
        max_out: the longest reply.
        options: what the engine is started with.
        thinking: what thought may take beside `max_out`.
    """

    budgets: Budgets
    max_out: int
    options: EngineOptions
    thinking: int = defaults.THINKING_TOKENS


@dataclass(frozen=True, slots=True)
class ToolServing:
    """The classifier's options.

    Attributes:
        threshold: probability from which the decision is yes.
        max_tokens: what it reads at most.
        gpu_fraction: part of the GPU's memory.
        tools: those of a classifier with several, each with its threshold; empty for one.
    """

    threshold: float
    max_tokens: int
    gpu_fraction: float
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """What will be served.

    Attributes:
        mode: which of the two models.
        chat: none in mode `tool`.
        tool: none in mode `chat`.
        batch_size: sequences that the settings want to run at once; none takes the artifact's limit.
    """

    mode: Mode
    chat: ChatServing | None
    tool: ToolServing | None
    batch_size: int | None


def plan(settings: RuntimeSettings, metadata: BuildMetadata) -> ServingPlan:
    """Decide what is served, and within which limits.

    Raises:
        SettingsError: everything that the settings want and the artifact cannot give.
    """
    problems: list[str] = []
    wanted, lane = settings.inference_engine, lane_of(metadata)
    if wanted is not None and wanted not in lane.asked_as:
        problems.append(
            f"INFERENCE_ENGINE: expected {metadata.lane} (the artifact was built for it), found {wanted}; unset it"
        )
    mode = _mode(settings, metadata, problems)
    chat = tool = None
    if mode in ("chat", "both") and metadata.chat is not None:
        chat = _chat(settings, metadata.chat, lane, mode, problems)
        _check_sharing(settings, metadata, metadata.chat, problems)
    if mode in ("tool", "both") and metadata.tool is not None:
        window = metadata.tool.max_tokens
        asked = settings.tool_history_tokens
        if asked is not None and asked > window:
            problems.append(f"TOOL_HISTORY_TOKENS: expected at most {window} (the model's window), found {asked}")
        tool = ToolServing(
            threshold=first_set(settings.tool_decision_threshold, default=metadata.tool.default_threshold),
            max_tokens=first_set(asked, default=metadata.tool.default_tokens),
            gpu_fraction=first_set(
                settings.tool_gpu_frac,
                default=defaults.GPU_TOOL_BESIDE_CHAT if mode == "both" else defaults.GPU_ALONE,
            ),
            tools=tools_of(metadata.tool, settings.tool_decision_threshold),
        )
    if chat is not None and tool is not None and (total := chat.options.gpu_fraction + tool.gpu_fraction) > 1:
        problems.append(f"CHAT_GPU_FRAC + TOOL_GPU_FRAC: expected at most 1, found {total:g}")
    if problems:
        raise SettingsError(problems)
    return ServingPlan(mode, chat, tool, _batch_size(settings, lane))


def _mode(settings: RuntimeSettings, metadata: BuildMetadata, problems: list[str]) -> Mode:
    held: Mode = "both" if metadata.chat and metadata.tool else "chat" if metadata.chat else "tool"
    wanted = settings.deploy_mode
    if wanted is None or wanted == held:
        return held
    if held != "both":
        problems.append(f"DEPLOY_MODE: expected {held} (that is what the artifact holds), found {wanted}")
    return wanted


def _chat(settings: RuntimeSettings, chat: ChatModel, lane: ServedLane, mode: Mode, problems: list[str]) -> ChatServing:
    limits = chat.limits
    longer = settings.vllm_allow_long_max_model_len and lane.longer_context
    most_out = limits.max_model_len - 1 if longer else min(limits.max_output_len, limits.max_model_len - 1)
    thinking = first_set(settings.thinking_max_tokens, default=chat.thinking_max_tokens)
    max_out = first_set(settings.chat_max_out, default=max(1, min(defaults.OUTPUT_TOKENS, most_out - thinking)))
    most_in = min(limits.max_input_len, limits.max_model_len - min(max_out + thinking, most_out))
    max_in = first_set(settings.chat_max_len, default=min(DEFAULT_BUDGETS.input, most_in))
    if not longer:
        if thinking and max_out + thinking > most_out:
            problems.append(
                f"CHAT_MAX_OUT + THINKING_MAX_TOKENS: expected at most {most_out} (the artifact's limit), "
                f"found {max_out + thinking}"
            )
        elif max_out > most_out:
            problems.append(f"CHAT_MAX_OUT: expected at most {most_out} (the artifact's limit), found {max_out}")
        if max_in > most_in:
            problems.append(
                f"CHAT_MAX_LEN: expected at most {most_in} (the artifact's context of {limits.max_model_len} "
                f"less the reply), found {max_in}"
            )
    budgets = _budgets(settings, max_in, problems)
    options = EngineOptions(
        gpu_fraction=first_set(
            settings.chat_gpu_frac, default=defaults.GPU_CHAT_BESIDE_TOOL if mode == "both" else defaults.GPU_ALONE
        ),
        max_num_seqs=_batch_size(settings, lane),
        max_num_batched_tokens=settings.max_num_batched_tokens_chat,
        max_model_len=max(limits.max_model_len, max_in + max_out + thinking) if longer else None,
        tensor_parallel_size=settings.tensor_parallel_size,
        pipeline_parallel_size=settings.pipeline_parallel_size,
        kv_cache_dtype=settings.kv_dtype,
        attention_backend=settings.vllm_attention_backend,
        weights_loader=settings.weights_loader,
        enforce_eager=settings.enforce_eager,
        own_metrics=settings.metrics_engine,
        cpu_kv_cache_gib=settings.vllm_cpu_kvcache_space,
        kv_free_fraction=settings.trt_kv_free_gpu_frac,
        kv_block_reuse=settings.trt_kv_enable_block_reuse,
        kv_offload_gib=settings.kv_offload_gib,
        graphs_after_readiness=settings.graphs_after_readiness,
    )
    return ChatServing(budgets, max_out, options, thinking)


def _check_sharing(settings: RuntimeSettings, metadata: BuildMetadata, chat: ChatModel, problems: list[str]) -> None:
    """Refuse another number of GPUs where the engine was made for one number."""
    tensor, stages = settings.tensor_parallel_size, settings.pipeline_parallel_size
    baked = chat.limits.tensor_parallel_size
    if engine_of(metadata).compiled and tensor is not None and tensor != baked:
        problems.append(f"TENSOR_PARALLEL_SIZE: expected {baked} (compiled into the engine), found {tensor}; unset it")
    if settings.kv_offload_gib and not lane_of(metadata).offloads:
        problems.append(
            f"KV_OFFLOAD_GIB: expected 0 in the {metadata.lane} lane, found {settings.kv_offload_gib:g}; unset it"
        )
    if not lane_of(metadata).stages and stages is not None and stages > 1:
        problems.append(f"PIPELINE_PARALLEL_SIZE: expected 1 in the {metadata.lane} lane, found {stages}; unset it")


def _batch_size(settings: RuntimeSettings, lane: ServedLane) -> int | None:
    """The sequences at once that were asked for, if any."""
    asked: int | None = getattr(settings, lane.batch_setting)
    return asked


def _budgets(settings: RuntimeSettings, max_in: int, problems: list[str]) -> Budgets:
    """The parts' budgets: the contract's, or the same shares of a smaller input."""

    def share(part: int) -> int:
        return min(part, part * max_in // DEFAULT_BUDGETS.input)

    parts = {
        "CHAT_PROMPT_MAX_TOKENS": (settings.chat_prompt_max_tokens, DEFAULT_BUDGETS.persona),
        "HISTORY_MAX_TOKENS": (settings.history_max_tokens, DEFAULT_BUDGETS.history),
        "USER_UTT_MAX_TOKENS": (settings.user_utt_max_tokens, DEFAULT_BUDGETS.utterance),
    }
    for name, (asked, _) in parts.items():
        if asked is not None and asked > max_in:
            problems.append(f"{name}: expected at most {max_in} (the input budget), found {asked}")
    persona, history, utterance = (share(part) if asked is None else asked for asked, part in parts.values())
    if persona + utterance > max_in:
        problems.append(
            f"CHAT_PROMPT_MAX_TOKENS + USER_UTT_MAX_TOKENS: expected at most {max_in} (the input budget), "
            f"found {persona + utterance}"
        )
    return Budgets(persona, history, utterance, max_in)
