"""The table of candidates: options of vLLM that are tried, each with where it can be one.

The plain options are no candidate: they are measured first and last, and everything is held against them. What was
measured to be a trap is not in the table: inductor's `max_autotune`, no asynchronous scheduling. Steps of 2,048 tokens
are the plain ones: vLLM's own choice for an engine in process. FlashInfer is not tried: its
kernels are compiled with nvcc when they are first used, and a runtime image has no compiler.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.artifact import EngineChoices
from runtime.engines.tuned import filled

# Methods whose weights have 4 bits.
FOUR_BITS = frozenset({"awq", "gptq", "int4_awq"})
HOPPER, AMPERE = 90, 80
# Tokens of the largest step that vLLM captures a graph for by itself.
MOST_GRAPHED = 512


@dataclass(frozen=True, slots=True)
class Situation:
    """What decides which candidates there are.

    Attributes:
        sm: compute capability of the GPU; none on a CPU.
        method: how the weights are quantized.
        streams: sequences that run at once, in the trials.
        sequences: that the engine takes at once, which may be more.
        context: the longest prompt with its reply, in tokens.
        kv_fp8: whether a KV cache in FP8 was asked for.
        gpus: that share the model.
        qk_norm: whether queries and keys are normed, as far as the model's `config.json` tells.
    """

    sm: int | None
    method: str
    streams: int
    sequences: int
    context: int
    kv_fp8: bool = False
    gpus: int = 1
    qk_norm: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """Options of the engine that may be better than its own.

    Attributes:
        name: for a person.
        choices: what it sets.
        not_tried: why it is none here; empty where it is tried.
    """

    name: str
    choices: EngineChoices
    not_tried: str = ""


def candidates(at: Situation) -> list[Candidate]:
    """Return the table for a situation in its order; those that are not tried, with the reason."""
    on_gpu = at.sm is not None
    sm = at.sm or 0
    four_bits = at.method in FOUR_BITS
    quantized = at.method == "fp8"
    graphs = capture_sizes(min(at.sequences, MOST_GRAPHED))
    not_fused = "" if quantized else f"nothing is quantized between layers with {at.method}"
    not_four_bits = "" if four_bits else f"it is for weights of 4 bits, these are {at.method}"
    not_fp8 = "" if quantized else f"it is for weights in FP8, these are {at.method}"
    # By their worth: a budget that ends leaves the last untried.
    table = (
        ("full graphs", EngineChoices(cudagraph_mode="FULL"), ""),
        # Of many prompts that come at once the first are answered while the last still wait; and vLLM has no graph for
        # a step of more than 512 tokens.
        (
            "full graphs, steps of 512 tokens",
            EngineChoices(cudagraph_mode="FULL", max_num_batched_tokens=512),
            _no_step(at, 512),
        ),
        (
            "full graphs, steps of 1,024 tokens",
            EngineChoices(cudagraph_mode="FULL", max_num_batched_tokens=1024),
            _no_step(at, 1024),
        ),
        # For weights in FP8 vLLM takes it by itself where a GPU cannot multiply these, and refuses it elsewhere.
        ("Marlin's products", EngineChoices(linear_backend="marlin"), not_four_bits),
        (
            "Machete's products",
            EngineChoices(linear_backend="machete"),
            not_four_bits or ("" if sm == HOPPER else f"it is for sm{HOPPER}, this is sm{sm}"),
        ),
        (
            "full graphs, norms fused with quantizing",
            EngineChoices(cudagraph_mode="FULL", fusions=("fuse_norm_quant", "fuse_act_quant")),
            not_fused,
        ),
        (
            "full graphs, attention fused with quantizing",
            EngineChoices(cudagraph_mode="FULL", fusions=("fuse_norm_quant", "fuse_act_quant", "fuse_attn_quant")),
            not_fused,
        ),
        ("PyTorch's products", EngineChoices(linear_backend="torch"), not_fp8),
        (
            "full graphs, norm fused with rotary positions",
            EngineChoices(cudagraph_mode="FULL", fusions=("enable_qk_norm_rope_fusion",)),
            "" if at.qk_norm else "this model has no norm of queries and keys",
        ),
        ("full graphs of decoding alone", EngineChoices(cudagraph_mode="FULL_DECODE_ONLY"), ""),
        ("graphs for every eighth batch", EngineChoices(capture_sizes=graphs), _one_batch(graphs)),
        ("steps of 16,384 tokens", EngineChoices(max_num_batched_tokens=16384), _no_step(at, 16384)),
        ("steps of 8,192 tokens", EngineChoices(max_num_batched_tokens=8192), _no_step(at, 8192)),
        (
            "KV cache in FP8",
            EngineChoices(kv_cache_dtype="fp8"),
            "" if at.kv_fp8 else "it changes what the model says; KV_DTYPE=fp8 asks for it",
        ),
        (
            "Triton's attention",
            EngineChoices(attention_backend="TRITON_ATTN"),
            "" if sm >= AMPERE else f"it needs sm{AMPERE}, this is sm{sm}",
        ),
        (
            "FlashInfer's attention",
            EngineChoices(attention_backend="FLASHINFER"),
            "its kernels are compiled at their first use, and the runtime has no compiler",
        ),
    )
    return [
        Candidate(name, choices, reason if on_gpu else "there is no GPU, and so no graph, here")
        for name, choices, reason in table
    ]


def capture_sizes(streams: int) -> tuple[int, ...]:
    """Return the batches for which graphs are captured: 1, 2, 4, every eighth up to the most streams.

    >>> capture_sizes(1), capture_sizes(20)
    ((1,), (1, 2, 4, 8, 16, 20))
    """
    return tuple(sorted({size for size in (1, 2, 4, *range(8, streams, 8), streams) if size <= streams}))


def _one_batch(graphs: tuple[int, ...]) -> str:
    return "" if len(graphs) > 1 else "there is one batch alone"


def _no_step(at: Situation, tokens: int) -> str:
    """Why a step of so many tokens is none, or the same as others; empty where it is one."""
    if filled(tokens, at.sequences):
        return f"two thirds of a step and more are tokens of {at.sequences} sequences that run"
    most = at.sequences * at.context
    return f"no step has more than {most} tokens" if tokens >= most else ""


def merged(best_first: list[EngineChoices]) -> EngineChoices:
    """Return all choices together; of two that choose the same option, the better one's."""
    together: dict[str, object] = {}
    for choices in best_first:
        for name in EngineChoices.model_fields:
            if value := getattr(choices, name):
                if name == "fusions":
                    known = together.get(name, ())
                    assert isinstance(known, tuple)  # noqa: S101 - it is what was put there
                    value = tuple(dict.fromkeys((*known, *value)))
                    together[name] = value
                else:
                    together.setdefault(name, value)
    return EngineChoices.model_validate(together)
