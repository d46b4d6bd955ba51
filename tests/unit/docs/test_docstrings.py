"""Docstrings stand alone: one line says what the thing is, and each attribute of a large class has its own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ["runtime", "pipeline", "images", "client/yap_client"]
# What tests start and speak to: what needs no docstring has none, but one that is there stands alone.
TEST_ROOMS = ["tests/harness", "tests/client", "tests/hub", "tests/benchmarks", "tests/gpu"]
CLASSES_DOCUMENTED = [*PACKAGES, "tests/client", "tests/hub"]
MOST_WORDS = 25
# A first line that only points at the name above it: whoever reads it alone, in a list or an editor, learns nothing.
POINTS_ELSEWHERE = re.compile(r"(It|Its|They|Them|All of (it|them)|An?( \w+)? one|The same)\b")
# A class with as many attributes needs a line for each of them.
MANY_ATTRIBUTES = 7

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def modules(package: str) -> list[Path]:
    """The package's source files."""
    return sorted((ROOT / package).rglob("*.py"))


def public(tree: ast.Module) -> Iterator[tuple[str, Documented]]:
    """A module, and the classes, functions and methods in it that others may use, each with its name."""
    yield "module", tree

    def inside(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Documented]]:
        for node in body:
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
                continue
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from inside(node.body, f"{prefix}{node.name}.")

    yield from inside(tree.body, "")


def fault_of(docstring: str | None) -> str | None:
    """What is wrong with a docstring's first line, in a word; none when it stands alone."""
    first = (docstring or "").strip().partition("\n")[0].strip()
    if not first:
        return "has no docstring"
    if not first.endswith((".", "!", "?")):
        return f"does not end as a sentence: {first}"
    if first.startswith(("Of ", "For ")):
        return f"is no sentence: {first}"
    if POINTS_ELSEWHERE.match(first):
        return f"does not say what it is about: {first}"
    if len(first.split()) > MOST_WORDS:
        return f"has more than {MOST_WORDS} words: {first}"
    return None


def attributes(node: ast.ClassDef) -> dict[str, int]:
    """The line of each attribute that the class declares, or that its `__init__` sets."""
    found: dict[str, int] = {}
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = statement.lineno
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            for part in ast.walk(statement):
                targets = part.targets if isinstance(part, ast.Assign) else []
                targets = [part.target] if isinstance(part, ast.AnnAssign) else targets
                for target in (inner for outer in targets for inner in ast.walk(outer)):
                    if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                        found.setdefault(target.attr, target.lineno)
    return found


def says(call: ast.Call) -> bool:
    """Whether a call such as `Field(description="…")` or `Gauge("name", "help")` describes what it makes."""
    named = any(keyword.arg == "description" for keyword in call.keywords)
    second = call.args[1] if len(call.args) > 1 else None
    return (
        named
        or isinstance(second, ast.JoinedStr)
        or (isinstance(second, ast.Constant) and isinstance(second.value, str))
    )


def undocumented(node: ast.ClassDef, lines: list[str]) -> list[str]:
    """Attributes without a word: neither a line in the docstring, nor a comment, nor a description in their value."""
    found = attributes(node)
    if len(found) < MANY_ATTRIBUTES:
        return []
    init = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    text = (ast.get_docstring(node) or "") + "\n" + (ast.get_docstring(init) or "" if init else "")
    described = {
        target.id if isinstance(target, ast.Name) else target.attr
        for part in (*node.body, *(init.body if init else ()))
        if isinstance(part, (ast.AnnAssign, ast.Assign)) and isinstance(part.value, ast.Call) and says(part.value)
        for target in ([part.target] if isinstance(part, ast.AnnAssign) else part.targets)
        if isinstance(target, (ast.Name, ast.Attribute))
    }
    missing = []
    for name, line in found.items():
        commented = "#" in lines[line - 1] or lines[line - 2].lstrip().startswith("#")
        told = re.search(rf"^ *(?:\w+, )*{name.lstrip('_')}(?:, \w+)*: ", text, re.MULTILINE)
        if name not in described and not commented and not told:
            missing.append(name)
    return missing


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_docstring_begins_with_a_sentence_that_stands_alone(package: str) -> None:
    faults = [
        f"{path.relative_to(ROOT)}: {name} {fault}"
        for path in modules(package)
        for name, node in public(ast.parse(path.read_text("utf-8")))
        if (fault := fault_of(ast.get_docstring(node)))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("room", TEST_ROOMS)
def test_a_docstring_in_the_tests_rooms_begins_with_a_sentence_that_stands_alone(room: str) -> None:
    faults = [
        f"{path.relative_to(ROOT)}: {name} {fault}"
        for path in modules(room)
        for name, node in public(ast.parse(path.read_text("utf-8")))
        if (docstring := ast.get_docstring(node)) and (fault := fault_of(docstring))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("package", CLASSES_DOCUMENTED)
def test_a_class_with_many_attributes_has_a_line_for_each(package: str) -> None:
    faults = [
        f"{path.relative_to(ROOT)}: {node.name}: {', '.join(missing)}"
        for path in modules(package)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        if (missing := undocumented(node, path.read_text("utf-8").splitlines()))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "docstring",
    [
        None,
        "",
        "Of a file.",
        "For one reply.",
        "It is gone.",
        "All of them.",
        "A new one.",
        "A line that goes",
        "word " * 26 + ".",
        "\n\nOf the engines that are there.\n",
    ],
)
def test_a_docstring_that_does_not_stand_alone_is_found(docstring: str | None) -> None:
    assert fault_of(docstring)


def test_an_attribute_without_a_word_is_found() -> None:
    source = 'class Large:\n    """Large.\n\n    Attributes:\n        a: the first.\n        b, c: two more.\n    """\n'
    source += "    a: int\n    b: int\n    c: int\n    d: int  # the fourth\n    # the fifth\n    e: int\n    f: int\n"
    source += "\n    def __init__(self, g: int):\n        self.g = g\n        self._h: int = 0\n"
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.ClassDef)
    assert undocumented(node, source.splitlines()) == ["f", "g", "_h"]
