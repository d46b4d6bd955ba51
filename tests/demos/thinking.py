"""A model that thinks, end to end: what it thinks is heard by nobody. `make demo-thinking`.

First a scripted reply with thought in it. Then the real engine on the embedded model, with a template like Qwen 3's,
whose switch keeps it from thinking; and with one that always opens a thought, as DeepSeek R1's does, which is built
with a budget for it and served as it was proven.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.embedded.chat import export_chat
from pipeline.progress import PlainProgress
from tests.client import Options, TurnRecord, connect
from tests.client.ending import ending
from tests.demos.chain import heading
from tests.harness.scripted import KEY, ScriptedEngine, serving
from tests.harness.server import Server
from tests.harness.templates.thought import ALWAYS, SWITCHED
from yap_client import Token, YapError

BUDGET = 16
# Short prompts and replies: the proof takes the longest of both, and this model's speed is not what is shown.
LIMITS = {"CHAT_MAX_LEN": "1024", "CHAT_MAX_OUT": "48"}
# However busy the machine is.
PATIENCE_S = 600.0
THOUGHT = ("<think>", "\n", "They", " ask", " for", " a", " capital.", "\n", "</think>", "\n\n")
# What a reply's thought would bring to the ear.
UNHEARD = ("think>", "They ask")


async def speak(options: Options, utterance: str, *, thinks: bool) -> bool:
    """One turn, printed as it comes; whether only speech was said, and thought was counted where there was some."""
    persona = "You are Anna. Answer in one short sentence."
    print(f"user       {utterance}\nassistant  ", end="", flush=True)
    async with connect(options, persona=persona, sampling={"temperature": 0}) as talk:
        turn = TurnRecord(talk.say(utterance))
        async for event in turn:
            if isinstance(event, Token):
                print(event.text, end="", flush=True)
    thought = turn.usage.thinking_tokens
    print(f"\n           {turn.usage.completion_tokens} tokens, {thought} of them unheard thought")
    if turn.problem:
        print(f"           {turn.problem}")
    heard = [part for part in UNHEARD if part in turn.text]
    if heard:
        print(f"           expected speech alone, found {heard}")
    return turn.ok and bool(turn.text.strip()) and not heard and (thought > 0) == thinks


async def scripted() -> bool:
    """A reply that begins with thought, from an engine that says what it is told."""
    engine = ScriptedEngine(reply=(*THOUGHT, "It", " is", " Paris."))
    async with serving(engine) as running:
        options = Options(url=running.url, api_key=KEY)
        return await speak(options, "What is the capital of France?", thinks=True)


def proven(folder: Path, template: str, out: Path, **variables: str) -> Path:
    """Have an artifact made of the embedded model with another template."""
    environment = LIMITS | variables
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", "run", "--cpu", "none", str(folder), "--out", str(out)]
    # The template closes or opens a thought that this small model never learned: what it knows is not what is shown.
    command += ["--min-known-prompts", "0", "--min-replies-end", "0"]
    # Nor is its speed, whatever else runs on this machine.
    command += ["--max-ttft-ms", "600000", "--max-itl-ms", "60000", "--min-tokens-per-s", "0.01"]
    shown = " ".join(f"{name}={value}" for name, value in environment.items())
    print(f"$ {shown} python -m pipeline {' '.join(command[3:])}".replace("$  ", "$ "), flush=True)
    status = subprocess.run(command, check=False, env={**os.environ, **environment}).returncode
    if status:
        sys.exit(f"demo: the run exited {status}; its last lines above say what to do")
    return out


def served(artifact: Path, *, thinks: bool) -> bool:
    """Serve an artifact as it is, without a word about thought, and talk to it."""
    with Server(artifact, GEN_TIMEOUT_S=f"{PATIENCE_S:g}") as server:
        print(f"$ ARTIFACT={artifact} TEXT_API_KEY=… python -m runtime")
        server.wait_ready(PATIENCE_S)
        options = Options(url=server.url, api_key=server.api_key, recv_timeout=PATIENCE_S)
        try:
            # A client's words switch nothing.
            said = [
                asyncio.run(speak(options, f"What is the capital of France?{words}", thinks=thinks))
                for words in ("", " /think")
            ]
        except YapError as error:
            print(f"demo: {error}\n{server.log_tail()}")
            return False
        return server.stop() == 0 and all(said)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    began = time.monotonic()
    heading("scripted: a reply with thought in it")
    results = {"scripted": asyncio.run(scripted())}
    with tempfile.TemporaryDirectory(prefix="yap-thinking-") as home:
        folder = Path(home) / "anna"
        folder.mkdir()
        export_chat(folder, PlainProgress())
        heading("a template like Qwen 3's: its switch is off, in the prompt and in the proof")
        results["switched off"] = served(proven(folder, SWITCHED, Path(home) / "switched"), thinks=False)
        heading(f"a template that always opens a thought: {BUDGET} tokens for it, recorded with the proof")
        artifact = proven(folder, ALWAYS, Path(home) / "always", THINKING_MAX_TOKENS=str(BUDGET))
        results["always thinks"] = served(artifact, thinks=True)
    for name, ok in results.items():
        print(f"{name}: {'only speech was heard' if ok else 'FAILED'}")
    ok = all(results.values())
    print(f"demo {'passed' if ok else 'FAILED'} in {time.monotonic() - began:.0f} s")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    with ending():
        main()
