"""The client as a package: what it needs, what it says of itself, and that it can be installed."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import yap_client

ROOT = Path(__file__).parents[3]
CLIENT = ROOT / "client"
PACKAGE = CLIENT / "yap_client"
UV = ROOT / ".venv-tools/bin/uv"
PROJECT = (CLIENT / "pyproject.toml").read_text("utf-8")
MOST_MODULES = 12
# What needs a framework, and is imported by who has it.
ADAPTERS = {"pipecat", "livekit"}
CORE = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "frameworks")
# From the ground up: each imports from those before it.
FLOORS = [
    *("errors", "transcript", "arguments", "events", "session"),
    *("dialogue.exchanges", "dialogue.outbox", "dialogue.inquiry", "dialogue.answers", "dialogue.protocol"),
    *("dialogue", "turn", "network.backoff", "network.handshake", "network.connection", "network", "talk", "sync"),
]


def file_of(name: str) -> Path:
    """The file of a module or of a room."""
    path = PACKAGE / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported(path: Path) -> set[str]:
    """The modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{name.name}" for name in node.names} if node.module == "yap_client" else {node.module}
            )
    return found


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_it_needs_two_packages_and_nothing_of_the_servers(path: Path) -> None:
    if path.stem in ADAPTERS:
        pytest.skip("an adapter of a framework")
    others = {name.partition(".")[0] for name in imported(path)} - sys.stdlib_module_names
    # For type checkers alone; nothing runs that imports it.
    assert others <= {"yap_client", "msgspec", "websockets", "typing_extensions"}
    declared = re.search(r"^dependencies = \[(.*)\]$", PROJECT, re.MULTILINE)
    assert declared is not None
    assert re.findall(r'"([a-z]+)', declared[1]) == ["msgspec", "websockets"]


@pytest.mark.parametrize("floor", range(len(FLOORS)), ids=FLOORS)
def test_a_module_imports_from_those_below_it(floor: int) -> None:
    inside = {name for name in imported(file_of(FLOORS[floor])) if name.startswith("yap_client.")}
    assert {name.removeprefix("yap_client.") for name in inside} <= set(FLOORS[:floor])


def test_the_protocol_knows_no_asyncio_and_no_sockets() -> None:
    for name in FLOORS[: FLOORS.index("turn")]:
        assert not {part.partition(".")[0] for part in imported(file_of(name))} & {"asyncio", "websockets"}


def test_every_module_has_its_floor() -> None:
    adapters = {file_of(name) for name in ADAPTERS}
    assert set(CORE) - adapters == {PACKAGE / "__init__.py", *map(file_of, FLOORS)}


def test_a_room_is_small() -> None:
    for room in (PACKAGE, *(path.parent for path in PACKAGE.glob("*/__init__.py"))):
        assert len(set(room.glob("*.py")) - {room / "__init__.py"}) <= MOST_MODULES, room


@pytest.mark.parametrize("name", FLOORS)
def test_the_examples_in_docstrings_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"yap_client.{name}")).failed == 0


def test_everything_public_is_there_and_named_once() -> None:
    assert yap_client.__all__ == sorted(set(yap_client.__all__))
    assert all(hasattr(yap_client, name) for name in yap_client.__all__)
    assert f'version = "{yap_client.__version__}"' in PROJECT
    assert (PACKAGE / "py.typed").is_file()
    assert (CLIENT / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.network
def test_it_is_built_installed_and_imported_without_the_project(tmp_path: Path) -> None:
    if not UV.exists():
        pytest.skip("no uv here: `make setup` installs it")
    to = tmp_path / "installed"
    command = [str(UV), "pip", "install", "--quiet", "--target", str(to), "--python", sys.executable, str(CLIENT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    source = "import yap_client, yap_client.sync, sys; print(yap_client.__file__, 'asyncio' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(to)!r}); {source}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert found.stdout.startswith(str(to)), found.stderr
    assert (to / "yap_client/py.typed").is_file()
    assert (to / "yap_client/dialogue/protocol.py").is_file()
    assert list(to.glob("yap_client-*.dist-info/licenses/LICENSE"))
