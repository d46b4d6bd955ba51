"""`docs/scaling.md` names tests that are there, and says of every row how it was seen."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.demos import scale

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/scaling.md").read_text("utf-8")


def section(title: str) -> str:
    found = PAGE.partition(f"## {title}\n")[2]
    assert found, title
    return found.partition("\n## ")[0]


@pytest.mark.house
def test_every_failure_names_the_test_that_reproduces_it() -> None:
    rows = [
        row.strip("| ").split(" | ") for row in section("What listeners notice").splitlines() if row.startswith("| ")
    ][1:]
    assert len(rows) >= 10
    above = ""
    for row in rows:
        named = re.findall(r"`(tests/[\w/.]+\.py)::(\w+)`", row[-1])
        assert named or (row[-1].strip() == "the same" and above), row[0]
        for path, name in named:
            defined = {
                node.name for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))) if hasattr(node, "name")
            }
            assert name in defined, f"{path}::{name}"
        above = row[-1]


@pytest.mark.house
def test_derived_figures_say_from_what() -> None:
    (title,) = [line for line in PAGE.splitlines() if line.startswith("## On paper")]
    rows = [row.strip("|").split(" | ") for row in section(title[3:]).splitlines() if row.startswith("| ")]
    assert all(len(row) == 3 for row in rows)


@pytest.mark.house
def test_what_never_ran_is_told() -> None:
    assert "Nothing of it has run in a cluster" in PAGE
    assert "Grafana never ran" in PAGE
    assert "Nobody has run this" in PAGE


@pytest.mark.parametrize(
    "arguments", [["--servers", "1"], ["--servers", "0"], ["--servers", "4"], ["--listeners", "3"]]
)
def test_the_demo_refuses_what_it_cannot_show_before_it_does_anything(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["scale", *arguments])
    monkeypatch.setattr(scale, "install", lambda: pytest.fail("it began"))
    with pytest.raises(SystemExit) as ended:
        scale.main()
    assert ended.value.code == 2
