#!/usr/bin/env python3
"""Talk to a companion in the terminal, streamed. /persona KEY, /cancel (or Ctrl-C while it speaks), /stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import uuid

from client.command import run
from prompts.detailed import DEFAULT, PERSONAS, style_of

from client import Ack, Client, Options, Token, ToolCall, TurnRecord, connect, parser, read_options

HELP = "/persona [KEY]  show or switch personas    /cancel  stop the reply    /stop  leave"
# A server closes what is silent for 150 s; people think for longer.
KEEP_ALIVE_S = 50

Lines = asyncio.Queue  # of str, and None where standard input ends


def read_terminal(lines: Lines) -> None:
    """Feed lines from standard input; None at its end. A thread of its own, because a terminal cannot be awaited."""
    loop = asyncio.get_running_loop()

    def tell(line: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(lines.put_nowait, line)

    def pump() -> None:
        for line in sys.stdin:
            tell(line.strip())
        tell(None)

    threading.Thread(target=pump, daemon=True).start()


class Conversation:
    """One session: what is typed goes in, what is said comes out."""

    def __init__(self, client: Client, options: Options, persona: str, lines: Lines) -> None:
        self.client = client
        self.lines = lines
        self.has_chat = options.chat_prompt
        gender, prompt = PERSONAS[persona]
        self.fields = options.start_fields(f"live-{uuid.uuid4().hex[:8]}", prompt)
        self.fields["gender"] = options.gender or gender
        self.fields["personality"] = style_of(persona)

    async def run(self, opener: str | None) -> bool:
        """Until `/stop` or the end of input; whether everything went well."""
        ok = True
        if opener:
            print(f"> {opener}")
            ok = await self.speak(opener)
        while True:
            print("> ", end="", flush=True)
            line = await self.lines.get()
            if line is None or line == "/stop":
                print()
                return ok
            if not line or line == "/cancel":
                continue
            if line == "/persona" or line.startswith("/persona "):
                ok = await self.switch(line.removeprefix("/persona").strip()) and ok
            elif line.startswith("/"):
                print(HELP)
            else:
                ok = await self.speak(line) and ok

    async def speak(self, utterance: str) -> bool:
        """One turn. `/cancel`, Ctrl-C and a typed `/stop` end it; anything else, and what a file says, waits."""
        turn = TurnRecord()
        typed = sys.stdin.isatty()
        later: list[str | None] = []
        await self.client.send("start", **self.fields, user_utterance=utterance)
        # The session keeps the persona; sending it again would undo a /persona.
        for name in ("chat_prompt", "gender", "personality"):
            self.fields.pop(name, None)
        cancel = asyncio.Event()
        asked: list[bool] = []

        async def watch() -> None:
            while True:
                line = await self.lines.get()
                if line != "/cancel":
                    later.append(line)
                if line == "/cancel" or (line == "/stop" and typed):
                    cancel.set()

        async def stop() -> None:
            await cancel.wait()
            asked.append(True)
            await self.client.send("cancel")

        loop = asyncio.get_running_loop()
        helpers = [loop.create_task(watch()), loop.create_task(stop())]
        loop.add_signal_handler(signal.SIGINT, cancel.set)
        try:
            async for frame in self.client.frames(turn):
                if isinstance(frame, ToolCall) and frame.wanted:
                    print("[wants to see your screen]")
                elif isinstance(frame, Token):
                    print(frame.text, end="", flush=True)
            if asked and turn.done and not turn.done.cancelled:
                await self.client.until("done")  # the cancel crossed the turn's own end
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            for helper in helpers:
                helper.cancel()
        print("\n" * bool(turn.text), end="")
        if turn.problem:
            print(f"[failed: {turn.problem}]")
        elif turn.done and turn.done.cancelled:
            print("[cancelled]")
        else:
            print(f"[{turn.summary()}]")
        for line in later:
            self.lines.put_nowait(line)
        return turn.ok

    async def switch(self, key: str) -> bool:
        """Replace the persona between turns; the conversation goes on."""
        if key not in PERSONAS:
            print(f"personas: {', '.join(PERSONAS)}")
            return True
        if not self.has_chat:
            print("[there is no system prompt to replace]")
            return False
        gender, prompt = PERSONAS[key]
        persona = {"gender": gender, "persona_style": style_of(key)}
        if "chat_prompt" in self.fields:  # nothing was said yet, so there is no session to change
            self.fields.update(chat_prompt=prompt, gender=gender, personality=style_of(key))
            print(f"[{key}]")
            return True
        await self.client.send("chat_prompt", persona_text=prompt, **persona)
        ack = await self.client.until("ack")
        assert isinstance(ack, Ack)
        print(f"[{key}: {ack.raw.get('message', '')}]")
        return ack.ok


async def keep_alive(client: Client) -> None:
    """A sign of life now and then."""
    while True:
        await asyncio.sleep(KEEP_ALIVE_S)
        await client.send("pong")


async def main() -> bool:
    arguments_parser = parser(__doc__.splitlines()[0])
    arguments_parser.add_argument("opener", nargs="?", help="what you say first")
    names = ", ".join(PERSONAS)
    arguments_parser.add_argument("--persona", metavar="KEY", default=DEFAULT, choices=PERSONAS, help=names)
    arguments = arguments_parser.parse_args()
    options = read_options(arguments)
    lines: Lines = asyncio.Queue()
    async with connect(options) as client:
        await client.ping()
        print(f"connected to {options.url} as {arguments.persona}\n{HELP}")
        read_terminal(lines)
        alive = asyncio.create_task(keep_alive(client))
        try:
            ok = await Conversation(client, options, arguments.persona, lines).run(arguments.opener)
        finally:
            alive.cancel()
        await client.end()
    return ok


if __name__ == "__main__":
    run(main())
