"""The house's rules: how large a room is, what it says of itself, and that the tests lie as the rooms do."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.harness.source.house import HOUSES, ROOT, floors, folders, name_of, rooms

MOST_MODULES = 12
# Names that say nothing of what is inside.
NAMELESS = {"utils", "util", "common", "base", "helpers", "helper", "misc", "lib"}
# Beside what an import can ask for: pytest loads these itself.
NOT_COUNTED = {"__init__", "conftest"}
# What has tests of its own and is no room: the documents, the clients, the benchmarks.
BESIDE_THE_HOUSE = {"deploy", "docs", "client", "clients", "benchmarks"}


@pytest.mark.parametrize("folder", [folder for top in (*HOUSES, "tests") for folder in folders(top)], ids=name_of)
def test_a_room_is_small_and_names_say_what_is_inside(folder: Path) -> None:
    modules = {path.stem for path in folder.glob("*.py")} - NOT_COUNTED
    assert len(modules) <= MOST_MODULES, sorted(modules)
    assert {folder.name, *modules} & NAMELESS == set()
    if folder.is_relative_to(ROOT / "tests"):
        return
    assert folder.name not in modules, "a module called like its package gets the name of what it holds"
    assert (folder / "__init__.py").is_file()


@pytest.mark.parametrize("room", rooms(), ids=name_of)
def test_a_room_says_what_it_is_for_and_what_it_may_import(room: Path) -> None:
    told = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))) or ""
    text = " ".join(told.split())
    assert re.match(r"\w.{20,}?[.:](?= )", text), "expected a first sentence that says what the room is for"
    allowed = re.search(r"May import ([^.]*)\.", text)
    assert allowed is not None, "expected a sentence that begins with `May import`"
    house, own = room.relative_to(ROOT).parts[:2]
    floor_of = floors(house)
    named = re.findall(r"`(\w+)`", allowed[1])
    assert named
    for other in named:
        below = floor_of[other] > floor_of[own]
        # A room inside a room may what its outer one may.
        assert below or (other == own != room.name), f"{other} is not below {own}"


@pytest.mark.parametrize("house", HOUSES)
def test_a_house_tells_its_rooms_from_the_ground_up(house: str) -> None:
    told = ast.get_docstring(ast.parse((ROOT / house / "__init__.py").read_text("utf-8"))) or ""
    floor_of = floors(house)
    names = [name for name in re.findall(r"`(\w+)`", told.partition("Rooms,")[2]) if name in floor_of]
    assert {room.name for room in rooms() if room.parent == ROOT / house} <= set(names)
    assert Counter(names).most_common(1)[0][1] == 1
    assert [floor_of[name] for name in names] == sorted((floor_of[name] for name in names), reverse=True)


def test_unit_tests_lie_as_the_rooms_do() -> None:
    unit = ROOT / "tests/unit"
    assert [path.name for path in unit.glob("test_*.py")] == [], "a test lies in the room of what it tests"
    for folder in folders("tests/unit"):
        house, *inside = folder.relative_to(unit).parts
        if house not in BESIDE_THE_HOUSE:
            assert (ROOT / house / Path(*inside) / "__init__.py").is_file(), f"{name_of(folder)} mirrors no room"
    for room in rooms():
        # What a room holds inside is tested in that room.
        if room.parent.parent == ROOT:
            assert list((unit / room.relative_to(ROOT)).glob("test_*.py")), f"{name_of(room)} has no unit tests"


def test_tests_take_nothing_from_each_other() -> None:
    """What several tests need is in `tests/harness` or a conftest: a test module can move, and run, alone."""
    for path in (ROOT / "tests").rglob("*.py"):
        if "__pycache__" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
                taken = [name for name in names if re.search(r"\.test_\w+$", name)]
                assert taken == [], f"{name_of(path)} takes from {taken}"
