"""The command line: `yap-runtime`, or `python -m runtime`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from runtime import __version__
from runtime.artifact import ArtifactError, verify
from runtime.artifact.lanes import lane_problem
from runtime.command import GONE, CommandGroup, drop_unwritten, ending, is_adrift
from runtime.deployment import settings as environment
from runtime.deployment.settings import RuntimeSettings, SettingsError, table, unknown

app = typer.Typer(
    cls=CommandGroup,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Serve an artifact over WebSocket. Everything is set by environment variables: ARTIFACT names the folder, "
    "TEXT_API_KEY the keys. `yap-runtime settings` lists them all.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"yap-runtime {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def default(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Serve, when no command is named."""
    if context.invoked_subcommand is None:
        serve()


@app.command()
def serve() -> None:
    """Load the artifact and serve it until SIGTERM."""
    chosen = load()
    if is_adrift():  # what loads models cannot even be imported there
        refuse([GONE])
    from runtime.server import process as server

    try:
        status = server.run(chosen)
    finally:
        drop_unwritten()
    raise typer.Exit(status)


def load() -> RuntimeSettings:
    """Read the settings, or exit and tell all that is wrong with them."""
    try:
        return environment.load()
    except SettingsError as error:
        refuse(error.problems)


def refuse(problems: Sequence[str]) -> NoReturn:
    """Tell all that is wrong with the settings, and exit."""
    for problem in problems:
        print(f"yap-runtime: {problem}", file=sys.stderr)
    warn()  # one of them may be what is missing
    raise typer.Exit(os.EX_USAGE) from None


def warn() -> None:
    """Tell which variables have no effect, and which were probably meant."""
    for warning in unknown.warnings(os.environ):
        print(f"yap-runtime: warning: {warning}", file=sys.stderr)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="The artifact.", show_default=False)],
    public_key: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Refuse it unless this key's owner signed it.")
    ] = None,
    lane: Annotated[
        str | None, typer.Option(help="Refuse it unless an image of this lane (vllm, trt, cpu, tool) can serve it.")
    ] = None,
) -> None:
    """Tell whether an artifact is whole and proven, on any machine; exit 65 when it is not.

    Whether this machine can serve it is what `serve` finds out.
    """
    try:
        metadata = verify.check_proven(folder, public_key)
        if lane and (problem := lane_problem(metadata, lane)):
            raise ArtifactError(f"{folder}: {problem}")
    except ArtifactError as error:
        print(f"yap-runtime: {error}", file=sys.stderr)
        raise typer.Exit(os.EX_DATAERR) from None
    print(f"{folder}: whole and proven, {len(metadata.files)} files, digest {metadata.digest[:12]}")
    if metadata.chat and metadata.chat.tuned:
        from runtime.engines.tuned import told_here
        from runtime.host import machine

        for line in told_here(metadata.chat, machine.describe()):
            print(f"{folder}: tuned options here: {line}")


@app.command()
def settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of docs/environment.md.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="As JSON: default, unit, meaning, and the value that holds here.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Tell only what is wrong here; exit 64 then.")] = False,
) -> None:
    """List every variable: default, unit, meaning."""
    if check:
        load()
        warn()
    elif as_json:
        found = environment.look()
        print(table.as_json(found.settings, found.wrong))
        if found.problems:
            refuse(found.problems)
    elif markdown:
        print(table.markdown(), end="")
    else:
        table.show()


def main() -> None:
    """The console script."""
    with ending("yap-runtime", prefix="yap-runtime: ", part="runtime"):
        app(prog_name="yap-runtime")
