"""The recorded interface of vLLM: `tests/data/vllm_api.json`, and the program that writes it.

    python -m tests.harness.vllm.api VERSION [VERSION ...]     fetch wheels from the package index, and record them
    python -m tests.harness.vllm.api --tree FOLDER VERSION     record the vLLM that lies in a folder: site-packages, say

For each release, the file says how each need of `runtime.engines.vllm.contract` is met: the line of source that defines
it, defaults included and annotations left out; nothing where there is none. The sources are read (`ast`), not imported,
so any release can be recorded on any machine.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from runtime.engines.vllm.contract import SEAMS
from runtime.engines.vllm.seams import Need, read_need

FILE = Path(__file__).parents[2] / "data/vllm_api.json"
PIP = Path(__file__).parents[3] / ".venv-tools/bin/pip"

# Of a line that cannot be called, the beginning tells enough.
LONGEST = 200

STATIC = "static "

# What docs/scaling.md says of several hosts: nothing here uses it, and releases may differ.
SEVERAL_HOSTS = (
    "vllm.config.parallel:ParallelConfig.distributed_executor_backend",
    "vllm.config.parallel:ParallelConfig.nnodes",
    "vllm.config.parallel:ParallelConfig.node_rank",
    "vllm.v1.executor.ray_executor:RayDistributedExecutor",
    "vllm.v1.executor.ray_executor:RayDistributedExecutor.supports_pp",
    "vllm.v1.executor.ray_executor_v2:RayExecutorV2",
    "vllm.v1.executor.multiproc_executor:MultiprocExecutor.supports_pp",
)

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Read = Callable[[str], "bytes | None"]


def needs() -> list[Need]:
    """Every need of every seam, and what the documentation says of vLLM beside."""
    used = [need for seam in SEAMS for need in (*seam.needs, *seam.met, *seam.since)]
    return [read_need(need) for need in (*used, *SEVERAL_HOSTS)]


def targets() -> list[str]:
    """What is looked up for them, each once."""
    return sorted({need.target for need in needs()})


def load() -> dict[str, dict[str, str | None]]:
    """The recording: each release's targets, and the line of source that defines each."""
    recording: dict[str, dict[str, str | None]] = json.loads(FILE.read_bytes())
    return recording


def signature(line: str) -> inspect.Signature | None:
    """The signature that a recorded line gives; none when it defines nothing that can be called."""
    if not line.endswith(":"):
        return None
    function = ast.parse(f"{line.removeprefix(STATIC)} ...").body[0]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    given = function.args
    kind = inspect.Parameter
    positional = [*given.posonlyargs, *given.args]
    required = len(positional) - len(given.defaults)
    made = [
        kind(argument.arg, kind.POSITIONAL_OR_KEYWORD, default=kind.empty if number < required else None)
        for number, argument in enumerate(positional)
    ]
    if given.vararg:
        made.append(kind(given.vararg.arg, kind.VAR_POSITIONAL))
    made += [
        kind(argument.arg, kind.KEYWORD_ONLY, default=kind.empty if default is None else None)
        for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    if given.kwarg:
        made.append(kind(given.kwarg.arg, kind.VAR_KEYWORD))
    return inspect.Signature(made)


class Release:
    """One release's sources.

    Args:
        read: gives a file by its path in the release, none when there is no such file.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self.module = cache(self._module)

    def _module(self, name: str) -> ast.Module | None:
        path = name.replace(".", "/")
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if (source := self._read(file)) is not None:
                return ast.parse(source)
        return None

    def line(self, need: Need) -> str | None:
        """The line of source that defines a need's target."""
        *owners, name = need.path.split(".")
        if owners:
            found = self._find(need.module, owners[0])
            line = self._member(need, *found) if found else None
        else:
            line = self._top(need, name)
        if line is None or need.text is None:
            return line
        where = self._find(need.module, need.path.split(".")[0])
        return line if where and need.text in set(_texts(_inside(where[1], need.path))) else None

    def _top(self, need: Need, name: str) -> str | None:
        found = self._find(need.module, name)
        if found is None:
            return None
        module, node = found
        if isinstance(node, ast.ClassDef):
            return self._class_line(need, module, node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return _function_line(node)
        if need.key is not None:
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            known = any(isinstance(key, ast.Constant) and key.value == need.key for key in keys)
            return f"{name}[{need.key!r}]" if known else None
        return ast.unparse(node)

    def _find(self, module: str, name: str) -> tuple[str, Definition | ast.Assign | ast.AnnAssign] | None:
        """Where a module's name is defined, followed through imports within the package."""
        tree = self.module(module)
        for node in _statements(tree) if tree else ():
            if isinstance(node, Definition) and node.name == name:
                return module, node
            if isinstance(node, ast.Assign | ast.AnnAssign) and name in _assigned(node):
                return module, node
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self._find(_absolute(module, node), alias.name)
        return None

    def _bases(self, module: str, node: ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef]]:
        """A class and its bases within the package, nearest first."""
        yield module, node
        for base in node.bases:
            if isinstance(base, ast.Name) and (found := self._find(module, base.id)):
                where, definition = found
                if isinstance(definition, ast.ClassDef):
                    yield from self._bases(where, definition)

    def _member(self, need: Need, module: str, node: ast.AST) -> str | None:
        name = need.path.rpartition(".")[2]
        if not isinstance(node, ast.ClassDef):
            return None
        for _, base in self._bases(module, node):
            for statement in base.body:
                if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name == name:
                    return _function_line(statement)
                if isinstance(statement, ast.Assign | ast.AnnAssign) and name in _assigned(statement):
                    return ast.unparse(statement)
            for inner in ast.walk(base):
                if isinstance(inner, ast.Assign | ast.AnnAssign) and f"self.{name}" in _assigned(inner):
                    return ast.unparse(inner)
        return None

    def _class_line(self, need: Need, module: str, node: ast.ClassDef) -> str:
        """How a class is called: its `__init__`, or those of its fields that are asked for or have no default."""
        if need.call is None:
            return f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"
        fields: dict[str, str] = {}
        for _, base in self._bases(module, node):
            for statement in base.body:
                if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                    return _function_line(statement)
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    default = f"={ast.unparse(statement.value)}" if statement.value else ""
                    fields.setdefault(statement.target.id, default)
        asked = {name for other in needs() if other.target == need.target and other.call for name in other.call[1]}
        kept = [f"{name}{default}" for name, default in fields.items() if name in asked or not default]
        return f"def __init__(self, *, {', '.join(kept)}):"


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """A module's statements, those inside `if` and `try` too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.stmt):
            yield node
        if isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
            yield from _statements(node)


def _assigned(node: ast.Assign | ast.AnnAssign) -> set[str]:
    nodes = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {ast.unparse(target) for target in nodes}


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that a `from` names. A relative one is taken as in a package's own `__init__`, or beside a module."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])


def _function_line(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """A function's first line without annotations. A property cannot be called; a static method has no self."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if decorators & {"property", "cached_property", "functools.cached_property"}:
        return f"{node.name}  # property"
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{STATIC if 'staticmethod' in decorators else ''}{word} {node.name}({ast.unparse(node.args)}):"


def _inside(node: ast.AST, path: str) -> ast.AST:
    for name in path.split(".")[1:]:
        node = next(inner for inner in ast.walk(node) if isinstance(inner, Definition) and inner.name == name)
    return node


def _texts(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value
        if isinstance(inner, ast.Attribute):
            yield inner.attr


def record(read: Read) -> dict[str, str | None]:
    """How a release meets every need."""
    release = Release(read)
    found = {}
    # A target that is called is recorded with its signature, whoever else asks for it.
    for need in sorted(needs(), key=lambda need: need.call is not None):
        line = release.line(need)
        found[need.target] = line if line is None or line.endswith(":") else line[:LONGEST]
    return dict(sorted(found.items()))


def from_index(version: str) -> dict[str, str | None]:
    """Record a wheel of the package index, which is deleted again: it is up to half a gigabyte."""
    with tempfile.TemporaryDirectory(prefix="vllm-wheel-") as folder:
        command = [str(PIP), "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder]
        subprocess.run([*command, f"vllm=={version}"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            return record(lambda path: archive.read(path) if path in names else None)


def from_tree(folder: Path) -> dict[str, str | None]:
    """Record the sources in a folder."""
    return record(lambda path: (folder / path).read_bytes() if (folder / path).is_file() else None)


def main() -> None:
    """Record, beside what is recorded already."""
    parser = argparse.ArgumentParser(prog="python -m tests.harness.vllm.api", description=__doc__)
    parser.add_argument("versions", nargs="*")
    parser.add_argument("--tree", type=Path, help="a folder in which `vllm` lies")
    options = parser.parse_args()
    recording = load() if FILE.exists() else {}
    for version in options.versions:
        recording[version] = from_tree(options.tree) if options.tree else from_index(version)
    FILE.write_text(json.dumps(dict(sorted(recording.items())), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
