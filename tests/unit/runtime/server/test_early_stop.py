"""A server that is told to go before it has come goes, and it is no failure."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness.server import free_port

# Stands in for what takes long to import, and is told to go right then.
WHILE_IMPORTING = """
import os, signal, sys, time, types
import runtime.__main__ as program

class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == "runtime.cli":
            os.kill(os.getpid(), signal.{signal})
            time.sleep(60)

sys.meta_path.insert(0, Importing())
sys.argv = ["yap-runtime", *{arguments}]
program.main()
"""


def status(arguments: list[str], number: str) -> int:
    script = WHILE_IMPORTING.format(arguments=arguments, signal=number)
    return subprocess.run([sys.executable, "-c", script], timeout=60, check=False, capture_output=True).returncode


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("arguments", [[], ["serve"]])
def test_a_signal_while_the_program_is_being_imported_exits_0(arguments: list[str], number: str) -> None:
    assert status(arguments, number) == 0


def test_a_command_that_serves_nothing_ends_as_any_other() -> None:
    assert status(["check", "x"], "SIGTERM") == -signal.SIGTERM


def catches(process: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("delay", [0.0, 0.3, 0.6, 1.2])
def test_a_signal_at_any_time_from_the_start_on_exits_0(tmp_path: Path, delay: float) -> None:
    # A hub that never answers: the artifact is still being looked for when the signal comes.
    with socket.create_server(("127.0.0.1", 0)) as hub:
        stopped_while_loading(tmp_path, delay, hub.getsockname()[1])


def stopped_while_loading(tmp_path: Path, delay: float, hub: int) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        "ARTIFACT": "hf:acme/model",
        "ARTIFACT_CACHE_DIR": str(tmp_path / "cache"),
        "HF_ENDPOINT": f"http://127.0.0.1:{hub}",
        "TEXT_API_KEY": "k",
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "LOG_DIR": str(tmp_path),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "runtime"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            while not catches(process.pid):
                assert process.poll() is None
                time.sleep(0.001)
            time.sleep(delay)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err


PREFLIGHT = """#!/bin/sh
case "$*" in
*preflight*) kill -s TERM "$PPID"; sleep 30 ;;
*) exit 9 ;;
esac
"""


@pytest.mark.parametrize(("program", "expected"), [("runtime", 0), ("pipeline", 143)])
def test_a_signal_during_the_preflight_of_an_image_ends_it(tmp_path: Path, program: str, expected: int) -> None:
    python = tmp_path / "python"
    python.write_text(PREFLIGHT)
    python.chmod(0o755)
    entrypoint = Path(__file__).resolve().parents[4] / "images" / "entrypoint.sh"
    result = subprocess.run(
        ["sh", str(entrypoint), "run"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "YAP_LANE": "cpu", "YAP_PROGRAM": program},
        timeout=20,
        check=False,
    )
    assert result.returncode == expected
