"""Uses of another package's insides: each a `Seam`, and whether what it needs is there.

A need is written `module:name`, with `(_, name=_)` behind it where it is called so, `[key]` where a mapping must have
the key, or ` 'text'` where its code must hold that text. Attributes that a class declares, or that its methods set on
an instance, count as there.
"""

from __future__ import annotations

import ast
import dis
import inspect
import logging
import pkgutil
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, Literal

from runtime.engines import EngineVersionError

log = logging.getLogger(__name__)

# How many positions, and which keywords.
Call = tuple[int, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Seam:
    """One use of another package's insides.

    Attributes:
        name: how messages call it.
        process: where it is used: the server's process, the engine's process or its workers.
        needs: what must be there.
        lost: what is missing without it.
        required: whether no engine can be served without it; else the package's own way is gone.
        upstream: the issue or change there that would end it.
        met: needs that show only where they are met, because looking them up would import a GPU's code.
        since: more of these, which the last release has, and the first ones did not need.
    """

    name: str
    process: Literal["server", "engine", "worker"]
    needs: tuple[str, ...]
    lost: str
    required: bool = False
    upstream: str = "none known"
    met: tuple[str, ...] = ()
    since: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Need:
    """A need, read: `module:name`, and at most one of a call, a key and a text."""

    module: str
    path: str
    call: Call | None = None
    key: str | None = None
    text: str | None = None

    @property
    def target(self) -> str:
        """What is looked up, without how it is called."""
        suffix = f"[{self.key}]" if self.key else f" '{self.text}'" if self.text else ""
        return f"{self.module}:{self.path}{suffix}"


_NEED = re.compile(r"([\w.]+):([\w.]+)(\(.*?\))?(?:\[(\w+)\])?(?: '(.+)')?")


def read_need(need: str) -> Need:
    """A need's parts."""
    found = _NEED.fullmatch(need)
    if found is None:
        raise ValueError(f"expected a need such as module:Class.method(_), found {need!r}")
    module, path, call, key, text = found.groups()
    if call is None:
        return Need(module, path, None, key, text)
    parsed = ast.parse(f"f{call}", mode="eval").body
    if not isinstance(parsed, ast.Call):
        raise ValueError(f"expected a call, found {need!r}")
    return Need(module, path, (len(parsed.args), tuple(str(word.arg) for word in parsed.keywords)), key, text)


def takes(signature: inspect.Signature, call: Call) -> str | None:
    """What a signature says against a call with so many positions and these keywords; none when it takes it."""
    try:
        signature.bind(*[None] * call[0], **dict.fromkeys(call[1]))
    except TypeError as error:
        return str(error)
    return None


def unmet(need: Need) -> str | None:
    """What is missing of a need in this process; none when it is met."""
    try:
        owner: Any = None
        found: Any = pkgutil.resolve_name(f"{need.module}:")  # imports it
        for part in need.path.split("."):
            if inspect.isclass(found) and not hasattr(found, part) and _on_instances(found, part):
                plain = need.call is None and need.key is None and need.text is None
                return None if plain else f"expected {need.target}, found an attribute of instances"
            owner, found = found, inspect.getattr_static(found, part, None) or getattr(found, part)
    except Exception as error:  # noqa: BLE001 - a module that cannot be imported, for whatever reason, has nothing
        return f"expected {need.target}, found none ({error})"
    if need.key is not None and need.key not in found:
        return f"expected {need.target}, found no such key"
    if need.text is not None and need.text not in set(_texts(found)):
        return f"expected {need.target}, found no such text"
    if need.call is None:
        return None
    return _call_unmet(need, owner, found)


def _call_unmet(need: Need, owner: Any, found: Any) -> str | None:  # noqa: ANN401 - whatever vLLM has there
    count, keywords = need.call or (0, ())
    if isinstance(found, (staticmethod, classmethod)):
        found = getattr(owner, need.path.rpartition(".")[2])
    elif inspect.isclass(owner) and not inspect.isclass(found):
        count += 1  # self
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return f"expected {need.target} to be called, found {type(found).__name__}"
    wrong = takes(signature, (count, keywords))
    return f"expected {need.target} to take {_spoken(need)}, found that it does not ({wrong})" if wrong else None


def _spoken(need: Need) -> str:
    count, keywords = need.call or (0, ())
    return f"({', '.join([*'_' * count, *(f'{name}=' for name in keywords)])})"


def _on_instances(owner: type, name: str) -> bool:
    """Whether a class declares an attribute, or a method of its sets it on something, such as an instance.

    Only code that names it is disassembled: to look through all of vLLM's takes a sixth of a second of each start.
    """
    for base in inspect.getmro(owner):
        if name in vars(base).get("__annotations__", ()):
            return True
        for member in vars(base).values():
            code = getattr(inspect.unwrap(member), "__code__", None) if inspect.isfunction(member) else None
            if code is not None and name in code.co_names and _stores(code, name):
                return True
    return False


def _stores(code: CodeType, name: str) -> bool:
    return any(step.opname == "STORE_ATTR" and step.argval == name for step in dis.get_instructions(code))


def _texts(found: Any) -> Iterator[str]:  # noqa: ANN401 - a class, a function or a code object
    """Every string and every name in the code of a class or a function."""
    if inspect.isclass(found):
        for member in vars(found).values():
            yield from _texts(member)
        return
    code = found if isinstance(found, CodeType) else getattr(found, "__code__", None)
    if code is None:
        return
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _texts(constant)


class Seams:
    """The seams to one package, and which of them this process found broken.

    Args:
        package: the package's name, as in messages; its module tells the version.
        seams: the table.
        releases: the first and the last that are known to do.
    """

    def __init__(self, package: str, seams: Sequence[Seam], releases: tuple[str, str]) -> None:
        self._package = package
        self._seams = {seam.name: seam for seam in seams}
        self._releases = releases
        self._wrong: dict[str, str | None] = {}
        self._warned: set[str] = set()

    @property
    def release(self) -> str:
        """The package and its version."""
        module = sys.modules.get(self._package.lower())
        return f"{self._package} {getattr(module, '__version__', 'of an unknown version')}"

    def holds(self, name: str) -> bool:
        """Whether a seam can be used in this process. Looked up once; that imports what it needs."""
        try:
            return self._wrong[name] is None
        except KeyError:
            needs = self._seams[name].needs
            self._wrong[name] = next((wrong for need in needs if (wrong := unmet(read_need(need)))), None)
            return self._wrong[name] is None

    def check(self) -> None:
        """Look at every seam, before an engine is started, and warn of each that is broken.

        Raises:
            EngineVersionError: a required one is broken.
        """
        for seam in self._seams.values():
            if self.holds(seam.name):
                continue
            if seam.required:
                first, last = self._releases
                advice = f"use {self._package} {first} to {last}"
                raise EngineVersionError(
                    f"{self.release}: {seam.name}: {self._wrong[seam.name]}; {seam.lost}; {advice}"
                )
            self._warn(seam)

    def give_up(self, name: str, reason: str) -> None:
        """Do without a seam from now on in this process: all that it needs was there, and it failed at its work."""
        if self.holds(name):
            self._wrong[name] = reason
        self._warn(self._seams[name])

    def _warn(self, seam: Seam) -> None:
        if seam.name not in self._warned:
            self._warned.add(seam.name)
            wrong = " ".join((self._wrong[seam.name] or "").split())
            log.warning(
                "%s: %s: %s; %s's own way is gone: %s", self.release, seam.name, wrong, self._package, seam.lost
            )
