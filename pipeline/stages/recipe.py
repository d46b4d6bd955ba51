"""Recipes: the hash of our own source code that decides what a stage makes, for the stage's key.

`recipe` takes full dotted names of modules and hashes their source files and those of every module of ours that they
import, found by reading the syntax tree. Nothing is imported for it. What counts as a dependency:

- imports anywhere in a module, those inside functions too, and the `__init__` of every package on the way;
- a text that is the name of one of our modules, or of something in one: it is loaded by its name, in another process
  or by an engine (`python -m pipeline.quantize.vllm`, a worker's class);
- not what stands under `if TYPE_CHECKING:`, which is never executed, so that it decides nothing.

A name that leads nowhere raises: a module that was moved must not turn a key into a constant.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path

# The packages that are ours. What others bring is in a key by its version.
OURS = ("pipeline", "runtime")

# The folder that holds them: as many folders up as this module's name has dots.
ROOT = Path(__file__).resolve().parents[__name__.count(".")]

# Modules that no recipe counts, nor what only they import, each with the reason. A changed progress bar must not
# quantize again for hours. A test holds that what the counted modules take from them is what is named here.
NOT_COUNTED: Mapping[str, tuple[frozenset[str], str]] = {
    "pipeline.progress": (frozenset({"Progress"}), "it tells how far the work is, and is told by it"),
    "pipeline.problem": (frozenset({"Problem"}), "it words what is wrong with a request, before any work"),
    "pipeline.stages.stage": (frozenset({"StageError"}), "it decides whether work is done, and words a failure"),
}

# Modules that load one of several others when asked, each with the reason. Imports inside their functions are not
# followed: with both lanes in every recipe, a change of one would do the other's work again.
CHOOSE_AT_CALL: Mapping[str, str] = {
    "runtime.engines.loaders": (
        "it loads the engine that it is asked for; the recipe of a stage that starts one names it"
    ),
}

_DOTTED = re.compile(rf"(?:{'|'.join(OURS)})(?:\.[A-Za-z_]\w*)+")


# Returns the source file of a module's name, none where there is none.
_Find = Callable[[str], Path | None]


class MissingSourceError(LookupError):
    """A recipe names a module, a name in a module, or a file that is not there."""


def recipe(*modules: str, data: Sequence[str] = (), root: Path = ROOT) -> str:
    """Return a SHA-256 over the source of modules, of those that they import, and over data files.

    It depends on relative names and content, not on where the packages are installed.

    Args:
        modules: full dotted names, such as `pipeline.build.vllm`.
        data: files of packages, as `package:pattern`, such as `pipeline.embedded:data/heldout.txt`.
        root: the folder that holds the packages.

    Raises:
        MissingSourceError: a module is unknown, or a pattern matches no file.
    """
    files = [*closure(modules, root).values(), *(path for entry in data for path in resources(entry, root))]
    hasher = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in set(files)):
        hasher.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return hasher.hexdigest()


def closure(modules: Iterable[str], root: Path = ROOT) -> dict[str, Path]:
    """Return the source files of the named modules and of all of ours that they import, by module.

    Raises:
        MissingSourceError: none is named, or one of them or one that they import is unknown.
    """
    found: dict[str, Path] = {}
    named = list(modules)
    if not named or (skipped := NOT_COUNTED.keys() & set(named)):
        raise MissingSourceError(f"recipe: expected modules that count, found {sorted(skipped) if named else 'none'}")
    find: _Find = cache(partial(_find, root=root))  # a few hundred names, asked for thousands of times
    waiting = [within for name in named for within in _with_packages(name, find, root, "a recipe")]
    while waiting:
        name = waiting.pop()
        if name in found or name in NOT_COUNTED:
            continue
        found[name] = source_of(name, root)
        waiting += _dependencies(name, find, root)
    return found


def resources(entry: str, root: Path = ROOT) -> list[Path]:
    """Return the files that a `package:pattern` matches.

    Raises:
        MissingSourceError: there is none.
    """
    package, _, pattern = entry.partition(":")
    folder = source_of(package, root).parent
    found = sorted(path for path in folder.glob(pattern) if path.is_file()) if pattern else []
    if not found:
        raise MissingSourceError(f"recipe: expected files that match {entry}, found none in {folder}")
    return found


def source_of(name: str, root: Path = ROOT) -> Path:
    """Return the source file of a module, or the `__init__.py` of a package.

    Raises:
        MissingSourceError: there is none.
    """
    if (path := _find(name, root)) is None:
        raise MissingSourceError(f"recipe: expected the source of the module {name} under {root}, found none")
    return path


@dataclass(frozen=True, slots=True)
class _Use:
    """A dotted name of ours that a module uses. `exact`: it has to be a module, as in `import a.b`."""

    name: str
    exact: bool


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a module's text says: names of ours used when it is imported and when called, and what it binds."""

    at_import: frozenset[_Use]
    at_call: frozenset[_Use]
    bound: frozenset[str]


@lru_cache(maxsize=512)
def _read(text: bytes, package: str) -> _Facts:
    """Parsing takes milliseconds a module and is done once a process for the same text."""
    at_import: set[_Use] = set()
    at_call: set[_Use] = set()
    bound: set[str] = set()
    for node, called in _executed(ast.parse(text), called=False):
        (at_call if called else at_import).update(_uses(node, package))
        bound.update(_binds(node))
    return _Facts(frozenset(at_import), frozenset(at_call), frozenset(bound))


def _executed(node: ast.AST, *, called: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node that can be executed, with whether only a call of a function executes it."""
    yield node, called
    called = called or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    inside: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and _is_type_checking(node.test):
        inside = node.orelse
    for child in inside:
        yield from _executed(child, called=called)


def _is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", None), getattr(test, "attr", None))


def _uses(node: ast.AST, package: str) -> Iterator[_Use]:
    if isinstance(node, ast.Import):
        yield from (_Use(alias.name, True) for alias in node.names if _is_ours(alias.name))
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        if _is_ours(base):
            yield _Use(base, True)
            yield from (_Use(f"{base}.{alias.name}", False) for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
        yield _Use(node.value, False)


def _binds(node: ast.AST) -> Iterator[str]:
    """Names that a node binds. Of every scope: one that is bound nowhere is missing for certain."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            # A star may bring any name.
            yield alias.asname or (alias.name.partition(".")[0])


def _dependencies(name: str, find: _Find, root: Path) -> list[str]:
    """The modules of ours that a module imports directly, with the packages on the way."""
    path = find(name) or source_of(name, root)
    facts = _read(path.read_bytes(), name if path.name == "__init__.py" else name.rpartition(".")[0])
    used = facts.at_import if name in CHOOSE_AT_CALL else facts.at_import | facts.at_call
    return sorted({within for use in used for within in _resolve(use, find, root, name)})


def _resolve(use: _Use, find: _Find, root: Path, user: str) -> list[str]:
    """The modules that a used name leads to: itself, or the one that binds it; with the packages on the way."""
    if use.exact or find(use.name):
        return _with_packages(use.name, find, root, user)
    holder, rest = use.name, ""
    while find(holder) is None and "." in holder:
        holder, _, rest = holder.rpartition(".")
    path = find(holder) or source_of(holder, root)
    bound = _read(path.read_bytes(), holder).bound
    if not bound & {rest, "*", "__getattr__"}:
        raise MissingSourceError(f"recipe: {user} names {use.name}, and {holder} holds no {rest}")
    return _with_packages(holder, find, root, user)


def _with_packages(name: str, find: _Find, root: Path, user: str) -> list[str]:
    """A module and the packages that importing it imports first."""
    words = name.split(".")
    if not _is_ours(name) or find(name) is None:
        raise MissingSourceError(f"recipe: {user} names the module {name}, which is not under {root}")
    return [".".join(words[:end]) for end in range(1, len(words) + 1)]


def _find(name: str, root: Path) -> Path | None:
    if not all(word.isidentifier() for word in name.split(".")):
        return None
    path = root.joinpath(*name.split("."))
    candidates = (path / "__init__.py", path.with_name(path.name + ".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in OURS
