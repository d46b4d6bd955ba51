"""A handle on `tests.frameworks.scripted_server`, which runs in the server's environment."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

ROOT = Path(__file__).parents[2]
KEY = "test-key"


@dataclass(frozen=True)
class State:
    """What the server's engine holds, and was given since it was last asked.

    Attributes:
        held: requests that run.
        aborts: how many were aborted so far.
        connections: those that are open.
        sessions: those that are kept.
        prompts: the words of each prompt.
        starts: what each `start` carried beside its utterance: `persona`, `history`, `runtime_text`.
    """

    held: int
    aborts: int
    connections: int
    sessions: int
    prompts: list[str]
    starts: list[str]


class ScriptedProcess:
    """A scripted server; the context manager starts and ends it.

    Args:
        python: the interpreter of the server's environment.
        variables: of its environment.
    """

    def __init__(self, python: str, **variables: str) -> None:
        self._python = python
        self._variables = variables
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.port = 0

    @property
    def url(self) -> str:
        """Of its WebSocket."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def http(self) -> str:
        """Of its HTTP doors."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ScriptedProcess:
        self._process = subprocess.Popen(
            [self._python, "-m", "tests.frameworks.scripted_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", **self._variables},
        )
        self.port = int(self._answer()["port"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._pipe(self._process.stdin).close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe(self._process.stdout).close()
        self._log.close()

    def state(self) -> State:
        """Ask what the engine holds."""
        return State(**self._ask("state"))

    async def settled(self) -> State:
        """Ask once the engine holds nothing: the server learns a moment later that a client has hung up."""
        state = self.state()
        while state.held:
            await asyncio.sleep(0.01)
            state = self.state()
        return state

    def model(self) -> str:
        """The name under which it serves its model."""
        asked = urllib.request.Request(f"{self.http}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(asked) as answer:
            return json.load(answer)["data"][0]["id"]

    def drop(self) -> None:
        """Cut every connection."""
        self._ask("drop")

    def _ask(self, command: str) -> dict:
        assert self._process is not None
        pipe = self._pipe(self._process.stdin)
        pipe.write(command + "\n")
        pipe.flush()
        return self._answer()

    def _answer(self) -> dict:
        assert self._process is not None
        line = self._pipe(self._process.stdout).readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the scripted server ended ({self._process.wait()}):\n{self._log.read()[-4000:]}")
        return json.loads(line)

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe
