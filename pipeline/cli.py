"""`yap-pipeline`: turn a model into an artifact that is complete, checked and self-describing.

Exit codes: 0 done; 64 the request is wrong, nothing was started; 65 a gate failed; 1 a stage failed, the finished ones
are kept; 70 a fault of the pipeline; 74 nothing can be written; 130 interrupted. `arguments/exits.py` has them all.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from pipeline import hints, progress
from pipeline.arguments import flags, options
from pipeline.arguments.exits import (
    FAILED_GATE,
    FAILED_STAGE,
    FAULT,
    INTERRUPTED,
    WRONG_REQUEST,
    CommandGroup,
    check_footing,
    exit_codes,
)
from pipeline.arguments.option_objects import with_options
from pipeline.plan import prepare
from pipeline.problem import Problem, WrongRequestError
from pipeline.publish.reports.artifact_report import show_artifact
from pipeline.publish.reports.plan_report import show_plan
from pipeline.publish.reports.printing import PlainConsole
from runtime import __version__
from runtime.artifact import BuildMetadata

app = typer.Typer(
    cls=CommandGroup,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Turn a model into an artifact: plan, quantize, build, validate; sign and publish it.\n\n"
    "Start with `yap-pipeline plan --cpu 8bit embedded embedded`, which downloads and changes nothing.",
    epilog=f"Exit codes: 0 done · {WRONG_REQUEST} wrong request, nothing was started · {FAILED_GATE} a gate failed · "
    f"{FAILED_STAGE} a stage failed, finished stages are kept · {FAULT} a fault of the pipeline, with a log · "
    f"{INTERRUPTED} interrupted",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"yap-pipeline {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command(name="plan")
@with_options(options.PlanCommandOptions)
def plan_command(given: options.PlanCommandOptions) -> None:
    """Show what would be done and why, or everything that is wrong. Starts nothing.

    Examples: `yap-pipeline plan --cpu 4bit HuggingFaceTB/SmolLM2-1.7B-Instruct embedded`,
    `yap-pipeline plan --vllm 4bit org/model --gpu L40S`, `HF_PUSH_REPO_ID=acme/model yap-pipeline plan --vllm 4bit
    org/model --push-quant`
    """
    request, cache, gpu = given.plan.request(), given.plan.cache_dir, given.chosen_gpu()
    destination = None
    if given.push_quant or given.sign_key:
        from pipeline.publish import publishing

        destination = publishing.check_before_run(
            request, cache, pushing=given.push_quant, sign_key=given.sign_key, gpu=gpu
        )
    console = PlainConsole()
    show_plan(prepare.prepare(request, cache, gpu=gpu).plan, console)
    if destination is not None:
        console.print(f"It can be published to {destination.repo}, as things are now.", soft_wrap=True)


@app.command(name="run")
@with_options(options.RunOptions)
def run_command(given: options.RunOptions) -> None:
    """Do everything: quantize, build, validate, and put the artifact at its place.

    Finished stages are kept, so a run that was killed goes on where it was. The artifact appears whole, and only when
    every gate passed.

    Examples: `yap-pipeline run --cpu 8bit embedded embedded --out artifacts/demo`,
    `yap-pipeline run --vllm 4bit org/model --fallback gptq`, `HF_PUSH_REPO_ID=acme/model yap-pipeline run --vllm 4bit
    org/model --push-quant`
    """
    from pipeline.publish import publishing

    destination = publishing.check_before_run(
        given.request(), given.plan.cache_dir, pushing=given.push_quant, sign_key=given.sign_key
    )
    place, metadata = _make(given)
    console = PlainConsole()
    show_artifact(metadata, console)
    console.print(f"\nThe artifact is at {place}", highlight=False, soft_wrap=True)
    publishing.publish(place, destination, given.sign_key)


def _make(given: options.RunOptions) -> tuple[Path, BuildMetadata]:
    """Make the artifact by the first method whose gates pass."""
    from pipeline.run import GateError, Run

    check_footing()
    request, cache = given.request(), given.plan.cache_dir
    while True:
        prepared = prepare.prepare(request, cache)
        try:
            with progress.for_terminal() as steps:
                run = Run(prepared, steps, force=given.force or prepared.settings.force_rebuild)
                folder, metadata = run.validate()
                return run.finish(folder, metadata), metadata
        except GateError as failed:
            hints.print_failures(failed.method, failed.failures)
            if not request.fallback or failed.classifier_alone:
                hints.print_next_step(prepared, failed.gates)
                raise typer.Exit(FAILED_GATE) from None
            typer.echo(f"trying {request.fallback[0]} instead", err=True)
            request = replace(request, method=request.fallback[0], fallback=request.fallback[1:])


@app.command(name="serve")
@with_options(options.ServeOptions)
def serve_command(given: options.ServeOptions) -> None:
    """Do everything that is not done yet, and become the server. Ctrl-C lets running turns end.

    The runtime's variables hold, and where nothing else is said it listens on 127.0.0.1 alone, with a key that is made
    for this start, and with a page to try it at `/`.

    Examples: `yap-pipeline serve --cpu 8bit embedded embedded`, `yap-pipeline serve --vllm 4bit org/model`
    """
    from pipeline import serving

    place, metadata = _make(given.run())
    serving.become_server(place, metadata)


@app.command(name="quantize")
@with_options(options.QuantizeOptions)
def quantize_command(given: options.QuantizeOptions) -> None:
    """Quantize only: write a Hugging Face folder that plain tools can open too. `run` goes on from there.

    Example: `yap-pipeline quantize --cpu awq embedded --out quantized`
    """
    check_footing()
    request, out = given.request(), given.out
    from pipeline.run import Run
    from pipeline.stages import install, place

    prepared = prepare.prepare_beside(
        request, given.cache_dir, lambda cache: place.model_problem(out, cache) if out else None
    )
    if out:
        install.recover(out)
    if prepared.plan.chat is None:
        raise WrongRequestError([Problem("arguments", "a chat model", "none", "name one, such as `embedded`")])
    with progress.for_terminal() as steps:
        run = Run(prepared, steps, force=given.force or prepared.settings.force_rebuild)
        _, model, quantization = run.quantize(prepared.plan.chat)
        folder = install.install_folder(model.folder, out, prepared.cache, steps.step) if out else model.folder
    group = f", groups of {quantization.group_size}" if quantization.group_size else ""
    typer.echo(f"{quantization.method} ({quantization.scheme}{group}): {folder}")


@app.command(name="build")
@with_options(options.BuildOptions)
def build_command(given: options.BuildOptions) -> None:
    """Everything but the proof: write an artifact that no runtime serves before `validate` has passed it.

    Example: `yap-pipeline build --cpu awq embedded embedded --out artifacts/mine`
    """
    check_footing()
    prepared = prepare.prepare(given.request(), given.cache_dir)
    from pipeline.run import Run

    with progress.for_terminal() as steps:
        run = Run(prepared, steps, force=given.force or prepared.settings.force_rebuild)
        folder, metadata = run.build()
        place = run.finish(folder, metadata)
    typer.echo(f"built, not proven: {place}\nnext: yap-pipeline validate {place}")


@app.command(name="validate")
@with_options(options.ValidateOptions)
def validate_command(given: options.ValidateOptions) -> None:
    """Prove an artifact on this machine, and write what was measured into it.

    Example: `yap-pipeline validate artifacts/mine --max-itl-ms 40`
    """
    from pipeline import revalidate
    from pipeline.lanes.gates import failures

    check_footing()

    with progress.for_terminal() as steps:
        metadata = revalidate.revalidate(
            given.artifact, given.reference, given.bounds, given.cache_dir, steps, given.tool_utterances
        )
    show_artifact(metadata, PlainConsole())
    if metadata.validation and (failed := failures(metadata.validation)):
        hints.print_failures(metadata.chat.quantization.method if metadata.chat else "tool", failed)
        raise typer.Exit(FAILED_GATE)


@app.command(name="push")
def push_command(
    artifact: flags.Artifact,
    sign_key: flags.SignKey = None,
) -> None:
    """Publish a proven artifact to HF_PUSH_REPO_ID: one commit, whole or not at all. A repeated push goes on.

    Example: `HF_TOKEN=… HF_PUSH_REPO_ID=acme/llama-8b-awq yap-pipeline push artifacts/mine`
    """
    from pipeline.publish import publishing

    publishing.push_artifact(artifact, sign_key)


@app.command(name="sign")
def sign_command(
    artifact: flags.Artifact,
    sign_key: Annotated[Path, typer.Option(help="Elliptic-curve private key (PEM).")],
) -> None:
    """Sign an artifact (OpenSSF model signature); a runtime with ARTIFACT_PUBLIC_KEY_FILE serves nothing else.

    Example: `yap-pipeline sign artifacts/mine --sign-key signing.pem`
    """
    from pipeline.publish import publishing

    publishing.sign_artifact(artifact, sign_key)


@app.command(name="inspect")
def inspect_command(
    artifact: flags.Artifact,
    as_json: Annotated[bool, typer.Option("--json", help="The metadata as JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file against its hash too.")] = False,
) -> None:
    """Show what an artifact is, how it was made, and what was measured.

    Example: `yap-pipeline inspect artifacts/demo --verify`
    """
    from pipeline.publish.inspect import inspect

    inspect(artifact, PlainConsole(), as_json=as_json, verify=verify)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _terminate)
    with exit_codes():
        app(prog_name="yap-pipeline")


def _terminate(_: int, __: FrameType | None) -> None:
    """Raise KeyboardInterrupt for a supervisor's signal, so that engines and quantizers are stopped too."""
    raise KeyboardInterrupt
