"""`docs/architecture.md` names every room, and no text names a file that is not there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.source.house import HOUSES, ROOT, floors, folders, name_of, rooms

ARCHITECTURE = (ROOT / "docs/architecture.md").read_text("utf-8")
PAGES = ("docs/architecture.md", "CONTRIBUTING.md")
# A path from the root, and what is named inside a module: `runtime/turns/turn.py:Turn`.
NAMED = re.compile(r"(?<![\w./-])((?:runtime|pipeline|tests|images|docs|\.ci|\.github)/[\w./-]*[\w/])(?::(\w+))?")
TOP_FILES = re.compile(r"`([A-Za-z][\w-]*\.(?:py|md|hcl|toml)|Makefile)`")


def wrong(text: str) -> Iterator[str]:
    """What a text names and is not there."""
    for path, name in NAMED.findall(text):
        found = ROOT / path
        if not (found.is_dir() if path.endswith("/") else found.exists()):
            yield path
        elif name and name not in defined(found):
            yield f"{path}:{name}"


def defined(module: Path) -> set[str]:
    """The names that a module defines itself."""
    names: set[str] = set()
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


# Where people read of our files: pages, scripts, images, workflows, and what the code says of itself.
TOLD = ("*.md", "docs/*.md", "Makefile", "*.toml", "*.hcl", "images/*.*", ".ci/*", ".github/workflows/*")
CODE = ("runtime", "pipeline", "tests/harness", "tests/integration", "tests/images", "tests/benchmarks", "tests/gpu")


def texts() -> list[str]:
    """Every file that may name others, by its path."""
    found = [path for pattern in TOLD for path in ROOT.glob(pattern) if path.is_file()]
    found += [path for top in CODE for path in (ROOT / top).rglob("*.py")]
    return [name_of(path) for path in sorted(found)]


@pytest.mark.parametrize("name", texts())
def test_what_a_text_names_exists(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert list(wrong(text)) == []
    if name in PAGES:
        assert [file for file in TOP_FILES.findall(text) if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("text", ["`runtime/turns/turns.py`", "`runtime/turns/turn.py:Turns`", "in runtime/shelf/"])
def test_what_does_not_exist_is_noticed(text: str) -> None:
    assert len(list(wrong(text))) == 1


def test_every_room_has_its_line() -> None:
    named = [name_of(room) for room in rooms()]
    # Of the tests, the folders that hold modules, at their top.
    named += sorted(
        {"/".join(name_of(folder).split("/")[:2]) for folder in folders("tests") if folder != ROOT / "tests"}
    )
    assert [name for name in named if f"`{name}/`" not in ARCHITECTURE] == []


@pytest.mark.parametrize("house", HOUSES)
def test_the_picture_shows_the_floors_that_are_held(house: str) -> None:
    picture = ARCHITECTURE.partition("```\n")[2].partition("```")[0].splitlines()
    start = re.search(rf"\b{house}:", picture[0])
    assert start is not None
    floor_of = floors(house)
    # A floor's names stand at its column, the runtime's with a word on each.
    cells = [re.split(r"\s{4,}", line[start.start() :])[0].split() for line in picture[1:]]
    shown = [[word for word in cell if word in floor_of] for cell in cells]
    expected: dict[int, set[str]] = {}
    for name, floor in floor_of.items():
        expected.setdefault(floor, set()).add(name)
    assert [set(names) for names in shown if names] == [names for names in expected.values() if names != {"__main__"}]


def test_a_page_is_short_and_the_first_one_leads_to_both() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for name, most in zip(PAGES, (150, 60), strict=True):
        assert len((ROOT / name).read_text("utf-8").splitlines()) <= most
        assert f"]({name})" in readme
