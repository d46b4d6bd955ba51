"""The main job, end to end: plan → quantize → build → validate, then serve, then talk. `make demo`.

Everything is real: llm-compressor quantizes, vLLM validates and serves, a WebSocket client talks. The embedded models
make it run on any machine; nothing is downloaded from a hub.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import re
import secrets
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from pipeline.lanes.gates import bound_text
from pipeline.publish.reports.printing import measured
from runtime import artifact
from tests.client import Options, TurnRecord, connect, plain, told
from tests.client.ending import ending
from tests.harness.server import Server
from yap_client import Sampling, Talk, Token, ToolCall, YapError

# What a model of 135 million parameters can carry: a short persona, plain questions, and no loops.
PERSONA = "You are a helpful assistant. Answer in one short sentence."
CALM: Sampling = {"temperature": 0, "repetition_penalty": 1.15, "max_tokens": 60}
MOST_IN_A_ROW = 5
# A line of the pipeline's progress; and how many of the last lines help where it failed.
STEP = re.compile(r"\[ *[\d.]+ s\] (.*)")
LAST_LINES = 20
WIDTH = 88
# How fast this machine is, and what else it does, is not what is shown: these gates are passed on any.
ANY_SPEED = ("--max-ttft-ms", "600000", "--max-itl-ms", "60000", "--min-tokens-per-s", "0.01")
# Few and short samples: enough for the gates, and quick on two cores.
SHORT = {"AWQ_NSAMPLES": "16", "AWQ_SEQLEN": "256"}
SCRIPT = (
    ("What is the capital of France?", "no"),
    ("What do bees make?", "no"),
    ("Can you take a look at my screen and tell me what you think?", "yes"),
)


def heading(text: str) -> None:
    print(f"\n\033[1m── {text}\033[0m" if sys.stdout.isatty() else f"\n── {text}", flush=True)


def pipeline(log: Path, *arguments: str) -> None:
    """Run one pipeline command as a user would. All that it prints goes to the log; here stands what it is at."""
    command = [sys.executable, "-m", "pipeline", *arguments]
    shown = [f"{name}={value}" for name, value in SHORT.items() if name not in os.environ]
    print("$ " + " ".join([*shown, "yap-pipeline", *arguments]), flush=True)
    began = time.monotonic()
    with log.open("a", encoding="utf-8", buffering=1) as file:
        file.write(f"\n$ {' '.join(arguments)}\n")
        child = subprocess.Popen(
            command, env=SHORT | os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert child.stdout is not None
        for line in child.stdout:
            file.write(line)
            if (step := STEP.match(line)) and sys.stdout.isatty():
                print(f"\r\033[K  {step[1][:90]}", end="", flush=True)
    erase = "\r\033[K" if sys.stdout.isatty() else ""
    if child.wait():
        print(f"{erase}{''.join(log.read_text('utf-8').splitlines(keepends=True)[-LAST_LINES:])}")
        sys.exit(
            f"demo: `{' '.join(command[1:])}` exited {child.returncode}; the lines above say what to do, {log} the rest"
        )
    print(f"{erase}  done in {time.monotonic() - began:.0f} s")


def show_gates(folder: Path) -> None:
    """What was measured, with its bounds, in few lines."""
    validation = artifact.read(folder).validation
    assert validation is not None
    passed = [f"{gate.name} {measured(gate)} ({bound_text(gate)})" for gate in validation.gates if gate.relation]
    # Spaces within one are kept together.
    line = textwrap.fill("   ".join(one.replace(" ", "\0") for one in passed), WIDTH, break_on_hyphens=False)
    print(textwrap.indent("passed: " + line.replace("\0", " "), "  "))


async def speak(talk: Talk, utterance: str, expected: str) -> bool:
    """One streamed turn, printed as it comes."""
    print(f"user       {utterance}")
    turn = TurnRecord(talk.say(utterance))
    async for event in turn:
        if isinstance(event, ToolCall):
            print(f"toolcall   {told(event)}\nassistant  ", end="", flush=True)
        elif isinstance(event, Token):
            print(event.text, end="", flush=True)
    print(f"\n           {turn.summary()}")
    if turn.problem:
        print(f"           {turn.problem}")
    decided = turn.tool.status if turn.tool else "absent"
    if decided != expected:
        print(f"           expected the decision {expected}, found {decided}")
    if stutters(turn.text):
        print(f"           expected a sane reply, found one word more than {MOST_IN_A_ROW} times in a row")
    return turn.ok and bool(turn.text.strip()) and decided == expected and not stutters(turn.text)


def stutters(text: str) -> bool:
    """Tell whether a text repeats one word more than five times in a row, punctuation aside.

    >>> stutters("monsieur, " * 6), stutters("very, very good")
    (True, False)
    """
    words = re.findall(r"\w+", text.lower())
    longest = max((len(list(group)) for _, group in itertools.groupby(words)), default=0)
    return longest > MOST_IN_A_ROW


async def converse(options: Options) -> bool:
    """Three turns with a decision each, then an interruption and a cancel."""
    ok = True
    async with connect(options, persona=PERSONA, sampling=CALM) as talk:
        for utterance, expected in SCRIPT:
            ok = await speak(talk, utterance, expected) and ok
        print("user       Tell me a long story about a lighthouse.   (interrupted)")
        turn = await TurnRecord(talk.say("Tell me a long story about a lighthouse.")).first_token()
        began = time.perf_counter()
        await talk.cancel()
        waited = time.perf_counter() - began
        await turn.whole()
        print(f"cancelled  {waited * 1000:.0f} ms after the client said so: {plain(turn.events[-1])}")
        ok = ok and turn.cancelled
    return ok


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="8bit", help="4bit, 8bit, awq, gptq or int8")
    parser.add_argument("--out", type=Path, default=Path("artifacts/demo"))
    arguments = parser.parse_args()
    began = time.monotonic()

    request = ["--cpu", arguments.method, "embedded", "embedded", "--out", str(arguments.out)]
    log = arguments.out.with_name(f"{arguments.out.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("", "utf-8")
    heading(f"plan, quantize, build, validate (all that is printed: {log})")
    pipeline(log, "plan", *request)
    pipeline(log, "run", *request, *ANY_SPEED)
    show_gates(arguments.out)

    heading("serve: the runtime loads what was proven, and nothing else")
    key = os.environ.get("TEXT_API_KEY") or secrets.token_hex(8)
    with Server(arguments.out, api_key=key) as server:
        waited = server.wait_ready()
        print(f"$ ARTIFACT={arguments.out} TEXT_API_KEY=… yap-runtime\n  ready after {waited:.0f} s at {server.url}")
        heading("talk: a streamed conversation with a tool decision")
        try:
            ok = asyncio.run(converse(Options(url=server.url, api_key=key)))
        except YapError as error:
            print(f"demo: {error}\n{server.log_tail()}")
            ok = False
        status = server.stop()
        print(f"\nserver drained and exited {status}")
        ok = ok and status == 0
    print(f"demo {'passed' if ok else 'FAILED'} in {time.monotonic() - began:.0f} s")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    with ending():
        main()
