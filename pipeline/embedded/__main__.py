"""Write an embedded model without the rest of the pipeline: `python -m pipeline.embedded chat|tool OUT`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pipeline import progress
from pipeline.embedded.chat import export_chat
from pipeline.embedded.packages import EmbeddedModelError
from pipeline.embedded.tool import train_tool
from runtime.command import ending

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


class EmbeddedModel(str, Enum):
    """The embedded models, by the word that names them on the command line."""

    chat = "chat"
    tool = "tool"


@app.command()
def write(
    model: Annotated[EmbeddedModel, typer.Argument()], out: Annotated[Path, typer.Argument(help="folder to write")]
) -> None:
    """Write the chat model, or train and write the screenshot classifier."""
    try:
        with progress.for_terminal() as steps:
            if model is EmbeddedModel.chat:
                export_chat(out, steps)
            else:
                typer.echo(train_tool(out, steps))
    except EmbeddedModelError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    with ending("yap-embedded", prefix="error: ", part="export"):
        app(prog_name="python -m pipeline.embedded")
