"""`yap-pipeline`: turn a model into an artifact that is complete, checked and self-describing.

Exit codes: 0 done; 64 the request is wrong, nothing was started; 65 a gate failed; 1 a stage failed, the finished ones
are kept; 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from pipeline import prepare, progress, report
from pipeline.lanes import LANES
from pipeline.plan import CalibrationPlan, Request
from pipeline.prepare import Prepared
from pipeline.problem import Problem, WrongRequestError
from pipeline.stages import StageError
from runtime.artifact import ArtifactError

WRONG_REQUEST, FAILED_GATE, FAILED_STAGE, INTERRUPTED = 64, 65, 1, 130

# What a command line parser reports as wrong usage; everything else keeps its code.
PARSER_USAGE = 2

METHOD_WORDS = frozenset(word for lane in LANES.values() for word in lane.words)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Turn a model into an artifact: plan, quantize, build, validate; sign and publish it.\n\n"
    "Start with `yap-pipeline plan --cpu 8bit embedded embedded`, which downloads and changes nothing.",
    epilog="Exit codes: 0 done · 64 wrong request, nothing was started · 65 a gate failed · 1 a stage failed, "
    "finished stages are kept · 130 interrupted",
)

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="[METHOD] CHAT_MODEL [TOOL_MODEL]",
        show_default=False,
        help="METHOD: 4bit, 8bit, awq, gptq, fp8, int8 or none, with --trt 4bit, 8bit, int4_awq, fp8 or int8_sq (else "
        "QUANTIZATION, which is 4bit). "
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


def request_of(models: list[str], lanes: tuple[str, ...], *, tool_only: bool) -> Request:
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
        return Request(tool=words[0], method=method, lanes=lanes)
    return Request(chat=words[0], tool=words[1] if len(words) == 2 else None, method=method, lanes=lanes)


def lanes_of(trt: bool, vllm: bool, cpu: bool) -> tuple[str, ...]:
    """The lanes whose flags were given."""
    return tuple(name for name, given in (("trt", trt), ("vllm", vllm), ("cpu", cpu)) if given)


@app.command(name="plan")
def plan_command(
    models: Models,
    trt: Trt = False,
    vllm: Vllm = False,
    cpu: Cpu = False,
    out: Out = None,
    cache_dir: CacheDir = None,
    tool_only: ToolOnly = False,
    allow_emulated: Emulated = False,
    fallback: Fallback = None,
) -> None:
    """Show what would be done and why, or everything that is wrong. Starts nothing.

    Example: `yap-pipeline plan --cpu 4bit HuggingFaceTB/SmolLM2-1.7B-Instruct embedded`
    """
    request = request_of(models, lanes_of(trt, vllm, cpu), tool_only=tool_only)
    request = replace(request, out=out, allow_emulated=allow_emulated, fallback=tuple(fallback or ()))
    report.show_plan(prepare.prepare(request, cache_dir).plan, Console())


@app.command(name="run")
def run_command(
    models: Models,
    trt: Trt = False,
    vllm: Vllm = False,
    cpu: Cpu = False,
    out: Out = None,
    force: Force = False,
    fallback: Fallback = None,
    cache_dir: CacheDir = None,
    tool_only: ToolOnly = False,
    allow_emulated: Emulated = False,
    push_quant: Push = False,
    sign_key: SignKey = None,
    max_perplexity: MaxPerplexity = None,
    min_top1: MinTop1 = None,
    min_known: MinKnown = None,
    max_ttft: MaxTtft = None,
    max_itl: MaxItl = None,
    min_speed: MinSpeed = None,
    min_tool: MinTool = None,
) -> None:
    """Do everything: quantize, build, validate, and put the artifact at its place.

    Finished stages are kept, so a run that was killed goes on where it was. The artifact appears whole, and only when
    every gate passed.

    Examples: `yap-pipeline run --cpu 8bit embedded embedded --out artifacts/demo`,
    `yap-pipeline run --vllm 4bit org/model --fallback gptq`, `HF_PUSH_REPO_ID=acme/model yap-pipeline run --vllm 4bit
    org/model --push-quant`
    """
    request = request_of(models, lanes_of(trt, vllm, cpu), tool_only=tool_only)
    bounds = thresholds(max_perplexity, min_top1, min_known, max_ttft, max_itl, min_speed, min_tool)
    request = replace(
        request, out=out, allow_emulated=allow_emulated, fallback=tuple(fallback or ()), thresholds=bounds
    )
    from pipeline import publishing
    from pipeline.run import GateError, Run

    destination = publishing.before_run(request, cache_dir, pushing=push_quant, sign_key=sign_key)
    while True:
        prepared = prepare.prepare(request, cache_dir)
        try:
            with progress.for_terminal() as steps:
                run = Run(prepared, steps, force=force or prepared.settings.force_rebuild)
                folder, metadata = run.proven()
                place = run.finish(folder, metadata)
        except GateError as failed:
            explain(failed.method, failed.shortfalls)
            if not request.fallback or failed.classifier_alone:
                advise(prepared, classifier=failed.classifier_alone)
                raise typer.Exit(FAILED_GATE) from None
            typer.echo(f"trying {request.fallback[0]} instead", err=True)
            request = replace(request, method=request.fallback[0], fallback=request.fallback[1:])
            continue
        console = Console()
        report.show_artifact(metadata, console)
        console.print(f"\nThe artifact is at {place}", highlight=False)
        publishing.publish(place, destination, sign_key)
        return


@app.command(name="quantize")
def quantize_command(
    models: Models,
    trt: Trt = False,
    vllm: Vllm = False,
    cpu: Cpu = False,
    out: Out = None,
    force: Force = False,
    cache_dir: CacheDir = None,
    allow_emulated: Emulated = False,
) -> None:
    """Quantize only: write a Hugging Face folder that plain tools can open too. `run` goes on from there.

    Example: `yap-pipeline quantize --cpu awq embedded --out quantized`
    """
    request = request_of(models, lanes_of(trt, vllm, cpu), tool_only=False)
    from pipeline import place
    from pipeline.run import Run

    if out and (problem := place.occupied(out)):
        raise WrongRequestError([problem])
    prepared = prepare.prepare(replace(request, allow_emulated=allow_emulated, tool=None), cache_dir)
    if prepared.plan.chat is None:
        raise WrongRequestError([Problem("arguments", "a chat model", "none", "name one, such as `embedded`")])
    with progress.for_terminal() as steps:
        run = Run(prepared, steps, force=force or prepared.settings.force_rebuild)
        _, model, quantization = run.quantized(prepared.plan.chat)
        folder = place.put_folder(model.folder, out) if out else model.folder
    group = f", groups of {quantization.group_size}" if quantization.group_size else ""
    typer.echo(f"{quantization.method} ({quantization.scheme}{group}): {folder}")


@app.command(name="build")
def build_command(
    models: Models,
    trt: Trt = False,
    vllm: Vllm = False,
    cpu: Cpu = False,
    out: Out = None,
    force: Force = False,
    cache_dir: CacheDir = None,
    tool_only: ToolOnly = False,
    allow_emulated: Emulated = False,
) -> None:
    """Everything but the proof: write an artifact that no runtime serves before `validate` has passed it.

    Example: `yap-pipeline build --cpu awq embedded embedded --out artifacts/mine`
    """
    request = request_of(models, lanes_of(trt, vllm, cpu), tool_only=tool_only)
    prepared = prepare.prepare(replace(request, out=out, allow_emulated=allow_emulated), cache_dir)
    from pipeline.run import Run

    with progress.for_terminal() as steps:
        run = Run(prepared, steps, force=force or prepared.settings.force_rebuild)
        folder, metadata = run.built()
        place = run.finish(folder, metadata)
    typer.echo(f"built, not proven: {place}\nnext: yap-pipeline validate {place}")


@app.command(name="validate")
def validate_command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of the artifact.")],
    reference: Annotated[
        str | None, typer.Option(help="The float model; else the source that the metadata names.")
    ] = None,
    cache_dir: CacheDir = None,
    max_perplexity: MaxPerplexity = None,
    min_top1: MinTop1 = None,
    min_known: MinKnown = None,
    max_ttft: MaxTtft = None,
    max_itl: MaxItl = None,
    min_speed: MinSpeed = None,
    min_tool: MinTool = None,
) -> None:
    """Prove an artifact on this machine, and write what was measured into it.

    Example: `yap-pipeline validate artifacts/mine --max-itl-ms 40`
    """
    from pipeline import revalidate
    from pipeline.gates import failures

    bounds = thresholds(max_perplexity, min_top1, min_known, max_ttft, max_itl, min_speed, min_tool)
    with progress.for_terminal() as steps:
        metadata = revalidate.revalidate(artifact, reference, bounds, cache_dir, steps)
    report.show_artifact(metadata, Console())
    if metadata.validation and (shortfalls := failures(metadata.validation)):
        explain(metadata.chat.quantization.method if metadata.chat else "tool", shortfalls)
        raise typer.Exit(FAILED_GATE)


@app.command(name="push")
def push_command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of the artifact.")],
    sign_key: SignKey = None,
) -> None:
    """Publish a proven artifact to HF_PUSH_REPO_ID: one commit, whole or not at all. A repeated push goes on.

    Example: `HF_TOKEN=… HF_PUSH_REPO_ID=acme/llama-8b-awq yap-pipeline push artifacts/mine`
    """
    from pipeline import publishing

    publishing.push_artifact(artifact, sign_key)


@app.command(name="sign")
def sign_command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of the artifact.")],
    sign_key: Annotated[Path, typer.Option(help="Elliptic-curve private key (PEM).")],
) -> None:
    """Sign an artifact (OpenSSF model signature); a runtime with ARTIFACT_PUBLIC_KEY_FILE serves nothing else.

    Example: `yap-pipeline sign artifacts/mine --sign-key signing.pem`
    """
    from pipeline import publishing

    publishing.sign_artifact(artifact, sign_key)


@app.command(name="inspect")
def inspect_command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of the artifact.")],
    as_json: Annotated[bool, typer.Option("--json", help="The metadata as JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file against its hash too.")] = False,
) -> None:
    """Show what an artifact is, how it was made, and what was measured.

    Example: `yap-pipeline inspect artifacts/demo --verify`
    """
    from pipeline.inspect import inspect

    inspect(artifact, Console(), as_json=as_json, verify=verify)


def explain(method: str, shortfalls: list[str]) -> None:
    """Say which gates failed, and by how much."""
    for line in shortfalls:
        typer.echo(f"gate failed: {method}: {line}", err=True)


def advise(prepared: Prepared, *, classifier: bool) -> None:
    """Say what to do after a failed gate."""
    chat = prepared.plan.chat
    if classifier:
        ways = "name another TOOL_MODEL, or set --min-tool-accuracy"
    elif chat is None or chat.prequantized:
        ways = "choose another model, or set the bound"
    else:
        ways = ", ".join([*other_methods(prepared, chat.method), *more_samples(prepared, chat.calibration)])
        ways = f"try {ways}, or set the bound" if ways else "choose another model, or set the bound"
    typer.echo(f"next: {ways}; see `yap-pipeline run --help`", err=True)


def other_methods(prepared: Prepared, method: str) -> list[str]:
    """What to ask for instead of a method that failed: the first that can run here, and quantizes too."""
    lane, sm = prepared.plan.lane, prepared.plan.sm
    runs = [name for name in lane.methods if not lane.refusal(name, sm, allow_emulated=False)]
    return [f"`--fallback {name}`" for name in runs if name not in {method, "none"}][:1]


def more_samples(prepared: Prepared, calibration: CalibrationPlan | None) -> list[str]:
    """Where a method looks at text: the variable that says at how much."""
    name = "TRT_CALIB_SIZE" if prepared.plan.lane.name == "trt" else "AWQ_NSAMPLES"
    return [f"more samples ({name}; there were {calibration.samples})"] if calibration else []


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what can go wrong into one line each and the exit code that goes with it."""
    try:
        yield
    except WrongRequestError as error:
        for problem in error.problems:
            typer.echo(f"error: {problem}", err=True)
        sys.exit(WRONG_REQUEST)
    except (StageError, ArtifactError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(FAILED_STAGE)
    except SystemExit as error:
        if error.code == INTERRUPTED:
            typer.echo("interrupted; finished stages are kept, the same command goes on from there", err=True)
        sys.exit(WRONG_REQUEST if error.code == PARSER_USAGE else error.code)


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, _terminate)
    with exit_codes():
        app(prog_name="yap-pipeline")


def _terminate(_: int, __: FrameType | None) -> None:
    """A supervisor's signal unwinds like an interrupt, so that engines and quantizers are stopped too."""
    raise KeyboardInterrupt
