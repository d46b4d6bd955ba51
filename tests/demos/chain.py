"""The main job, end to end: plan → quantize → build → validate, then serve, then talk. `make demo`.

Everything is real: llm-compressor quantizes, vLLM validates and serves, a WebSocket client talks. The embedded models
make it run on any machine; nothing is downloaded from a hub.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from tests.client import Client, ClientError, Options, Token, ToolCall, TurnRecord, connect
from tests.harness.server import Server
from tests.prompts.detailed import PERSONAS

PERSONA = PERSONAS["anna_wholesome"][1]
# Few and short samples: enough for the gates, and quick on two cores.
SHORT = {"AWQ_NSAMPLES": "16", "AWQ_SEQLEN": "256"}
SCRIPT = (
    ("Hi Anna! What is the capital of France?", "no"),
    ("Can you take a look at my screen and tell me what you think?", "yes"),
)


def heading(text: str) -> None:
    print(f"\n\033[1m── {text}\033[0m" if sys.stdout.isatty() else f"\n── {text}", flush=True)


def pipeline(*arguments: str) -> None:
    """Run one pipeline command as a user would; its own output says what went wrong."""
    command = [sys.executable, "-m", "pipeline", *arguments]
    shown = [f"{name}={value}" for name, value in SHORT.items() if name not in os.environ]
    print("$ " + " ".join([*shown, "python -m pipeline", *arguments]), flush=True)
    status = subprocess.run(command, check=False, env=SHORT | os.environ).returncode
    if status:
        sys.exit(f"demo: `{' '.join(command[1:])}` exited {status}; its last lines above say what to do")


async def speak(client: Client, fields: dict, utterance: str, expected: str) -> bool:
    """One streamed turn, printed as it comes."""
    print(f"user       {utterance}")
    turn = TurnRecord()
    await client.send("start", **fields, user_utterance=utterance)
    async for frame in client.frames(turn):
        if isinstance(frame, ToolCall):
            print(f"toolcall   {frame.told}\nassistant  ", end="", flush=True)
        elif isinstance(frame, Token):
            print(frame.text, end="", flush=True)
    print(f"\n           {turn.summary()}")
    if turn.error:
        print(f"           {turn.error.code}: {turn.error.message}")
    decided = turn.tool.status if turn.tool else "absent"
    if decided != expected:
        print(f"           expected the decision {expected}, found {decided}")
    return turn.ok and bool(turn.text.strip()) and decided == expected


async def converse(options: Options) -> bool:
    """Two turns with a decision each, then an interruption and a cancel."""
    ok = True
    fields = options.start_fields("demo", PERSONA)
    fields["sampling"] = {"temperature": 0}
    async with connect(options) as client:
        for utterance, expected in SCRIPT:
            ok = await speak(client, fields, utterance, expected) and ok
            fields.pop("chat_prompt", None)
        print("user       Tell me a long story about a lighthouse.   (interrupted)")
        await client.send("start", **fields, user_utterance="Tell me a long story about a lighthouse.")
        await client.until("token")
        began = time.perf_counter()
        await client.send("cancel", request_id="stop")
        done = await client.until("done")
        print(f"cancelled  {(time.perf_counter() - began) * 1000:.0f} ms after the client said so: {done.raw}")
        ok = ok and bool(done.raw.get("cancelled"))
        await client.end()
    return ok


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="8bit", help="4bit, 8bit, awq, gptq or int8")
    parser.add_argument("--out", type=Path, default=Path("artifacts/demo"))
    arguments = parser.parse_args()
    began = time.monotonic()

    request = ["--cpu", arguments.method, "embedded", "embedded", "--out", str(arguments.out)]
    heading("plan: what will be done, and why")
    pipeline("plan", *request)
    heading("run: quantize, build, validate")
    pipeline("run", *request)
    heading("inspect: what the artifact says of itself")
    pipeline("inspect", str(arguments.out))

    heading("serve: the runtime loads what was proven, and nothing else")
    key = os.environ.get("TEXT_API_KEY") or secrets.token_hex(8)
    with Server(arguments.out, api_key=key) as server:
        waited = server.wait_ready()
        print(
            f"$ ARTIFACT={arguments.out} TEXT_API_KEY=… python -m runtime\nready after {waited:.0f} s at {server.url}"
        )
        heading("talk: a streamed conversation with a tool decision")
        try:
            ok = asyncio.run(converse(Options(url=server.url, api_key=key)))
        except ClientError as error:
            print(f"demo: {error}\n{server.log_tail()}")
            ok = False
        status = server.stop()
        print(f"\nserver drained and exited {status}")
        ok = ok and status == 0
    print(f"demo {'passed' if ok else 'FAILED'} in {time.monotonic() - began:.0f} s")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
