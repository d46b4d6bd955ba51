#!/usr/bin/env python3
"""Talk to a companion in the terminal, streamed. /persona KEY, /cancel (or Ctrl-C while it speaks), /stop."""

from __future__ import annotations

import asyncio
import sys
import uuid

from client import Client, Token, ToolCall, Turn, connect, parser, read_options
from client.command import run
from prompts.detailed import DEFAULT, PERSONAS, style_of

HELP = "/persona [KEY]  show or switch personas    /cancel  stop the reply    /stop  leave"


async def read_line(lines: asyncio.Queue[str | None]) -> str | None:
    return await lines.get()


def read_terminal(lines: asyncio.Queue[str | None]) -> None:
    """Feed lines from standard input; None at its end. A thread of its own, because a terminal cannot be awaited."""
    loop = asyncio.get_running_loop()

    def pump() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line.strip())
        loop.call_soon_threadsafe(lines.put_nowait, None)

    import threading

    threading.Thread(target=pump, daemon=True).start()


async def speak(client: Client, fields: dict, lines: asyncio.Queue[str | None]) -> bool:
    """One turn; a `/cancel` typed meanwhile ends it, anything else waits for its end."""
    turn = Turn()
    waiting: list[str | None] = []
    await client.send("start", **fields)

    async def watch() -> None:
        while True:
            line = await read_line(lines)
            if line == "/cancel":
                await client.send("cancel")
            else:
                waiting.append(line)

    watcher = asyncio.create_task(watch())
    try:
        async for frame in client.frames(turn):
            if isinstance(frame, ToolCall) and frame.wanted:
                print("[wants to see your screen]")
            elif isinstance(frame, Token):
                print(frame.text, end="", flush=True)
    finally:
        watcher.cancel()
    print()
    if turn.error:
        print(f"[failed: {turn.error.code}: {turn.error.message}]")
    elif turn.done and turn.done.cancelled:
        print("[cancelled]")
    else:
        print(f"[{turn.summary()}]")
    for line in waiting:
        lines.put_nowait(line)
    return turn.ok


async def switch(client: Client, key: str) -> bool:
    """Replace the persona between turns; the conversation goes on."""
    if key not in PERSONAS:
        print(f"personas: {', '.join(PERSONAS)}")
        return True
    gender, prompt = PERSONAS[key]
    await client.send("chat_prompt", persona_text=prompt, gender=gender, persona_style=style_of(key))
    ack = await client.until("ack")
    print(f"[{key}: {ack.raw.get('message', '')}]")
    return bool(ack.raw.get("ok"))


async def main() -> bool:
    arguments_parser = parser(__doc__.splitlines()[0])
    arguments_parser.add_argument("opener", nargs="?", help="what you say first")
    arguments_parser.add_argument("--persona", default=DEFAULT, choices=PERSONAS, help="who you talk to")
    arguments = arguments_parser.parse_args()
    options = read_options(arguments)
    gender, prompt = PERSONAS[arguments.persona]
    fields = options.start_fields(f"live-{uuid.uuid4().hex[:8]}", prompt)
    fields.setdefault("gender", gender)
    fields["personality"] = style_of(arguments.persona)
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    ok = True
    async with connect(options) as client:
        print(f"connected to {options.url} as {arguments.persona}\n{HELP}")
        read_terminal(lines)
        if arguments.opener:
            lines.put_nowait(arguments.opener)
        while True:
            print("> ", end="", flush=True)
            line = await read_line(lines)
            if line is None or line == "/stop":
                break
            if not line or line == "/cancel":
                continue
            if line.startswith("/persona"):
                ok = await switch(client, line.removeprefix("/persona").strip()) and ok
            elif line.startswith("/"):
                print(HELP)
            else:
                ok = await speak(client, {**fields, "user_utterance": line}, lines) and ok
                # The session keeps the persona; sending it again would undo a /persona.
                for name in ("chat_prompt", "gender", "personality"):
                    fields.pop(name, None)
        await client.end()
    return ok


if __name__ == "__main__":
    run(main())
