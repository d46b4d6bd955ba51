#!/usr/bin/env python3
"""Talk to a companion in the terminal, streamed. /persona KEY, /cancel (or Ctrl-C while it speaks), /stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading

from client import Options, TurnRecord, connect, parser, read_options
from client.command import run
from prompts.detailed import DEFAULT, PERSONAS, style_of
from yap_client import Backoff, Interrupted, RefusedError, Talk, Token, ToolCall

HELP = "/persona [KEY]  show or switch personas    /cancel  stop the reply    /stop  leave"
# A server that is started again is back by then.
PATIENCE = Backoff(within=300)

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

    def __init__(self, talk: Talk, options: Options, lines: Lines) -> None:
        self.talk = talk
        self.lines = lines
        self.has_chat = options.chat_prompt

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
        turn = TurnRecord(self.talk.say(utterance))
        typed = sys.stdin.isatty()
        later: list[str | None] = []

        async def watch() -> None:
            while True:
                line = await self.lines.get()
                if line != "/cancel":
                    later.append(line)
                if line == "/cancel" or (line == "/stop" and typed):
                    turn.turn.cancel()

        loop = asyncio.get_running_loop()
        watcher = loop.create_task(watch())
        loop.add_signal_handler(signal.SIGINT, turn.turn.cancel)
        try:
            async for event in turn:
                if isinstance(event, ToolCall) and event.screenshot:
                    print("[wants to see your screen]")
                elif isinstance(event, Token):
                    print(event.text, end="", flush=True)
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            watcher.cancel()
        print("\n" * bool(turn.text), end="")
        if isinstance(turn.ended, Interrupted):
            print(f"[interrupted: {turn.problem}; connecting again]")
        elif turn.problem:
            print(f"[failed: {turn.problem}]")
        elif turn.cancelled:
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
        try:
            answer = await self.talk.set_persona(prompt, gender=gender, style=style_of(key))
        except RefusedError as refused:
            print(f"[{key}: {refused.message}]")
            return False
        print(f"[{key}: {answer.message}]" if answer is not None else f"[{key}]")
        return True


async def main() -> bool:
    arguments_parser = parser(__doc__.splitlines()[0])
    arguments_parser.add_argument("opener", nargs="?", help="what you say first")
    names = ", ".join(PERSONAS)
    arguments_parser.add_argument("--persona", metavar="KEY", default=DEFAULT, choices=PERSONAS, help=names)
    arguments = arguments_parser.parse_args()
    options = read_options(arguments)
    lines: Lines = asyncio.Queue()
    gender, prompt = PERSONAS[arguments.persona]
    style = style_of(arguments.persona)
    async with connect(options, persona=prompt, gender=gender, style=style, backoff=PATIENCE) as talk:
        print(f"connected to {options.url} as {arguments.persona}\n{HELP}")
        read_terminal(lines)
        return await Conversation(talk, options, lines).run(arguments.opener)


if __name__ == "__main__":
    run(main())
