"""What can be said on the command line, and the request that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.lanes import LANES
from pipeline.plan import BuildRequest
from pipeline.problem import Problem, WrongRequestError
from runtime.defaults import QUANTIZATION

METHOD_WORDS = frozenset(word for lane in LANES.values() for word in lane.words)

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="[METHOD] CHAT_MODEL [TOOL_MODEL]",
        show_default=False,
        help="METHOD: 4bit, 8bit, awq, gptq, fp8, int8 or none, with --trt 4bit, 8bit, int4_awq, fp8 or int8_sq (else "
        f"QUANTIZATION, which is {QUANTIZATION}). "
        "A model: a folder, a hub id (`org/name`, `org/name@revision`), or `embedded`.",
    ),
]
Trt = Annotated[bool, typer.Option("--trt", help="The TensorRT-LLM lane.")]
Vllm = Annotated[bool, typer.Option("--vllm", help="The vLLM lane, on an NVIDIA GPU.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="The vLLM lane, on any processor.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the artifact; else artifacts/MODEL-METHOD-LANE.")]
CacheDir = Annotated[Path | None, typer.Option(help="Folder of finished stages; else AWQ_CACHE_DIR.")]
ToolOnly = Annotated[bool, typer.Option("--tool-only", help="The one model named is the classifier; no chat model.")]
Emulated = Annotated[bool, typer.Option("--allow-emulated", help="Allow FP8 on a CPU, ten times slower.")]
Force = Annotated[bool, typer.Option("--force", help="Do every stage again; FORCE_REBUILD=true does the same.")]
Fallback = Annotated[list[str] | None, typer.Option(help="Method to try when the gates fail; may be repeated.")]
MaxPerplexity = Annotated[
    float | None, typer.Option("--max-perplexity-ratio", min=1.0, help="Against the float model.")
]
MinTop1 = Annotated[float | None, typer.Option("--min-top1", min=0.0, max=1.0, help="Same first choice, at least.")]
MinKnown = Annotated[float | None, typer.Option("--min-known-prompts", min=0.0, max=1.0, help="Answered right.")]
MaxTtft = Annotated[float | None, typer.Option("--max-ttft-ms", min=0.0, help="Time to the first token, one stream.")]
MaxItl = Annotated[float | None, typer.Option("--max-itl-ms", min=0.0, help="Time between tokens, one stream.")]
MinTool = Annotated[
    float | None, typer.Option("--min-tool-accuracy", min=0.0, max=1.0, help="The classifier, on held-out utterances.")
]
MinSpeed = Annotated[float | None, typer.Option("--min-tokens-per-s", min=0.0, help="All streams together.")]
Push = Annotated[
    bool, typer.Option("--push-quant", help="Publish to HF_PUSH_REPO_ID afterwards. Without it nothing is uploaded.")
]
SignKey = Annotated[Path | None, typer.Option(help="Sign with this elliptic-curve private key (PEM).")]


def thresholds(
    max_perplexity: float | None,
    min_top1: float | None,
    min_known: float | None,
    max_ttft: float | None,
    max_itl: float | None,
    min_speed: float | None,
    min_tool: float | None,
) -> dict[str, float]:
    """The bounds that were given, by the names of `gates.Thresholds`."""
    given = {
        "perplexity_ratio": max_perplexity,
        "top1_agreement": min_top1,
        "known_prompts": min_known,
        "ttft_ms": max_ttft,
        "itl_ms": max_itl,
        "tokens_per_s": min_speed,
        "tool_accuracy": min_tool,
    }
    return {name: value for name, value in given.items() if value is not None}


def request_of(models: list[str], lanes: tuple[str, ...], *, tool_only: bool) -> BuildRequest:
    """The request in the positional words.

    The first word is a method when it is one, or when there is one word too many: then the plan says what is wrong.

    Raises:
        WrongRequestError: too few or too many words.
    """
    words = list(models)
    most = 1 if tool_only else 2
    method = words.pop(0) if words[0] in METHOD_WORDS or len(words) > most else None
    if not 1 <= len(words) <= most:
        expected = "[METHOD] TOOL_MODEL" if tool_only else "[METHOD] CHAT_MODEL [TOOL_MODEL]"
        raise WrongRequestError([Problem("arguments", expected, " ".join(models), "see --help")])
    if tool_only:
        return BuildRequest(tool=words[0], method=method, lanes=lanes)
    return BuildRequest(chat=words[0], tool=words[1] if len(words) == 2 else None, method=method, lanes=lanes)


def lanes_of(trt: bool, vllm: bool, cpu: bool) -> tuple[str, ...]:
    """The lanes whose flags were given."""
    return tuple(name for name, given in (("trt", trt), ("vllm", vllm), ("cpu", cpu)) if given)
