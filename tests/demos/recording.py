"""Draw the README's conversation from a real run: `python -m tests.demos.recording ARTIFACT [FILE.svg]`.

The server is the one that users run, on a proven artifact; what it says and how long it took is what stands there.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.client import Options, TurnRecord, connect, told
from tests.client.ending import ending
from tests.demos.chain import CALM, PERSONA, SCRIPT
from tests.harness.server import Server
from yap_client import Talk, Token, ToolCall

PICTURE = Path(__file__).parents[2] / "docs/pictures/conversation.svg"
KEY = "recording"
WORDS_BEFORE_CANCEL = 8


def said(who: str, words: str, style: str) -> Table:
    """What one of them said, beside who it was; a long line goes on below its own beginning."""
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=9, justify="right")
    line.add_column()
    line.add_row(Text(who, "dim"), Text(words, style))
    return line


async def turn(talk: Talk, console: Console, utterance: str, *, interrupts: bool = False) -> None:
    """Hold one turn and print it."""
    console.print(said("you", utterance, "bold"))
    record, words, decision = TurnRecord(talk.say(utterance)), "", ""
    async for event in record:
        if isinstance(event, ToolCall):
            decision = told(event)
        elif isinstance(event, Token):
            words += event.text
            if interrupts and len(words.split()) >= WORDS_BEFORE_CANCEL:
                interrupts = False
                record.turn.cancel()
                words += " ✂"
    console.print(said("assistant", words.strip(), "cyan"))
    ttft = f"first token {record.ttft * 1000:.0f} ms" if record.ttft is not None else "nothing was said"
    console.print(said("", f"screenshot: {decision}   {ttft}   {record.tokens} tokens", "dim"))
    console.print()


async def record(server: Server, console: Console) -> None:
    """The demo's turns, and one that is interrupted."""
    async with connect(Options(url=server.url, api_key=KEY), persona=PERSONA, sampling=CALM) as talk:
        for utterance, _ in SCRIPT:
            await turn(talk, console, utterance)
        await turn(talk, console, "Tell me a long story about a lighthouse.", interrupts=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path, help="a proven one, such as artifacts/demo")
    parser.add_argument("picture", type=Path, nargs="?", default=PICTURE, help="the file to write")
    arguments = parser.parse_args()
    artifact, picture = arguments.artifact, arguments.picture
    console = Console(record=True, width=92, force_terminal=True)
    with Server(artifact, api_key=KEY) as server:
        server.wait_ready()
        console.print(Text(f"$ ARTIFACT=artifacts/{artifact.name} TEXT_API_KEY=… yap-runtime", "dim"))
        console.print()
        asyncio.run(record(server, console))
    picture.parent.mkdir(parents=True, exist_ok=True)
    drawn = console.export_svg(title="Yap Text Inference")
    # The reader's own monospaced font does: a picture fetches nothing.
    picture.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":
    with ending():
        main()
