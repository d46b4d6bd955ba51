"""The command line: `yap-runtime`, or `python -m runtime`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from runtime import settings as environment
from runtime import settings_table
from runtime.settings import Settings, SettingsError

EX_USAGE = 64

app = typer.Typer(
    add_completion=False,
    help="Serve an artifact over WebSocket. Everything is set by environment variables: ARTIFACT names the folder, "
    "TEXT_API_KEY the keys. `yap-runtime settings` lists them all.",
)


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Serve, when no command is named."""
    if context.invoked_subcommand is None:
        serve()


@app.command()
def serve() -> None:
    """Load the artifact and serve it until SIGTERM."""
    chosen = load()
    from runtime import server

    raise typer.Exit(server.run(chosen))


def load() -> Settings:
    """What the environment says, or an exit that tells all that is wrong with it."""
    try:
        return environment.load()
    except SettingsError as error:
        for problem in error.problems:
            print(f"yap-runtime: {problem}", file=sys.stderr)
        raise typer.Exit(EX_USAGE) from None


@app.command()
def settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of docs/environment.md.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Tell only what is wrong here; exit 64 then.")] = False,
) -> None:
    """List every variable: default, unit, meaning."""
    if check:
        load()
    elif markdown:
        print(settings_table.markdown(), end="")
    else:
        settings_table.show()


def main() -> None:
    """The console script."""
    app()
