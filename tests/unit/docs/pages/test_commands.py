"""The commands that pages, messages and help texts name exist, and `make setup` installs them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import pipeline.cli
import runtime.cli
from runtime import __version__

ROOT = Path(__file__).parents[4]
PROGRAMS = {"yap-pipeline": pipeline.cli.app, "yap-runtime": runtime.cli.app}
# `yap-pipeline run …`, `python -m pipeline run …`, across a line's end too.
NAMED = re.compile(r"(yap-(?:pipeline|runtime)|python3? -m (?:pipeline|runtime))\s+([a-z][a-z-]*)")


def commands(program: str) -> set[str]:
    return set(typer.main.get_command(PROGRAMS[program]).commands)  # type: ignore[attr-defined]


def texts() -> Iterator[Path]:
    yield from (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    for room in ("runtime", "pipeline", ".github"):
        yield from sorted(path for path in (ROOT / room).rglob("*") if path.suffix in {".py", ".yml"})


def test_every_command_that_is_named_exists() -> None:
    found, unknown = set(), []
    for path in texts():
        for program, command in NAMED.findall(path.read_text("utf-8")):
            program = program if program.startswith("yap-") else f"yap-{program.rsplit(maxsplit=1)[1]}"
            # Prose goes on behind a program's name; what is a command there is followed by an argument or ends a quote.
            if command in commands(program):
                found.add((program, command))
            elif f"`{program} {command}" in path.read_text("utf-8"):
                unknown.append(f"{path.relative_to(ROOT)}: {program} {command}")
    assert not unknown
    assert len(found) > 8


def test_setup_installs_this_checkout() -> None:
    """`.` among the locks is the checkout itself (images/install.sh)."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    installs = re.findall(r"images/install\.sh \.venv (.+)", makefile)
    assert len(installs) == 2
    assert all(line.split()[-1] == "." for line in installs)


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_say_their_version(program: str) -> None:
    script = Path(sys.executable).with_name(program)
    command = [str(script)] if script.exists() else [sys.executable, "-m", program.removeprefix("yap-")]
    answer = subprocess.run([*command, "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout == f"{program} {__version__}\n"
    assert answer.stderr == ""


def test_there_is_a_licence_and_it_is_the_declared_one() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text("utf-8")
