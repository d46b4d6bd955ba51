"""What docs/scaling.md says that listeners notice: each row is reproduced by the tests that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.harness.fleet.rows import reproduces

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/scaling.md").read_text()
FOLDERS = ("tests/integration/fleet", "tests/unit/runtime/turns/stores")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> dict[str, set[str]]:
    """The tests that each row of the table names, by its first cell."""
    section = PAGE.split("## What listeners notice")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    found: dict[str, set[str]] = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 4, line
        assert cells[0] not in found, line
        found[cells[0]] = {"::".join(match) for match in NAMED.findall(cells[3])}
        assert found[cells[0]], f"no test is named: {line}"
    return found


def reproduced() -> dict[str, set[str]]:
    """The tests that say which rows they reproduce."""
    found: dict[str, set[str]] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob("test_*.py")):
            for name, row in said(path.read_text()):
                found.setdefault(row, set()).add(f"{path.relative_to(ROOT)}::{name}")
    return found


def said(source: str) -> list[tuple[str, str]]:
    """Each test of a module with each row that it says to reproduce."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            for call in node.decorator_list:
                match call:
                    case ast.Call(func=ast.Name(id=reproduces.__name__), args=arguments):
                        found += [(node.name, str(ast.literal_eval(argument))) for argument in arguments]
    return found


def test_rows_and_tests_are_the_same() -> None:
    assert rows() == reproduced()


def test_every_test_that_the_page_names_is_there() -> None:
    for path, name in NAMED.findall(PAGE):
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"


@pytest.mark.parametrize("dies", ["a server", "a host", "the store", "the router"])
def test_whatever_dies_has_a_row(dies: str) -> None:
    assert any(row.startswith(f"{dies} dies") for row in rows())


def test_a_row_that_no_test_reproduces_is_found() -> None:
    source = '@reproduces("a", "b")\n@other("c")\nasync def test_x(): ...\n@reproduces("d")\ndef helper(): ...'
    assert said(source) == [("test_x", "a"), ("test_x", "b")]
    with pytest.raises(ValueError, match="at least one row"):
        reproduces()
