"""What could run code that an artifact brings: every place in the source, and what keeps it from doing so."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.artifact.files.kinds import PICKLES, is_code, is_pickle, is_weights

ROOT = Path(__file__).resolve().parents[5]
SOURCES = [path for house in ("runtime", "pipeline") for path in sorted((ROOT / house).rglob("*.py"))]

# Calls that run what they read, or may.
RUNS = {
    *("exec", "eval", "compile", "__import__", "execfile"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("torch.load", "torch.jit.load", "torch.export.load", "torch.ops.load_library", "joblib.load", "dill.load"),
    *("numpy.load", "np.load", "yaml.load", "yaml.unsafe_load", "runpy.run_path", "runpy.run_module"),
    *("importlib.import_module", "importlib.util.spec_from_file_location", "ctypes.CDLL", "ctypes.cdll.LoadLibrary"),
}
# Those that are there, and what they read: names of ours, never a file of an artifact.
KNOWN = {
    ("runtime/engines/vllm/context.py", "ctypes.CDLL"): "the driver's library",
    ("runtime/host/machine.py", "runpy.run_path"): "the version of torch, in its own file",
    ("pipeline/stages/disk.py", "ctypes.CDLL"): "the C library of this process",
    ("runtime/engines/vllm/contract/life.py", "importlib.import_module"): "modules of vLLM by name",
    ("runtime/engines/vllm/contract/workers/loading.py", "importlib.import_module"): "modules of vLLM by name",
}
# Loaders of transformers that look for code in the folder, unless they are told not to; and those of one class, which
# never do.
OF_ONE_CLASS = {"PreTrainedTokenizerFast", "GenerationConfig"}


def name_of(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(ROOT).as_posix(), node


@pytest.mark.house
def test_nothing_of_ours_runs_what_it_reads() -> None:
    found = {(path, name_of(call.func)) for path, call in calls() if name_of(call.func) in RUNS}
    assert found == KNOWN.keys(), found ^ KNOWN.keys()


@pytest.mark.house
def test_every_loader_of_transformers_is_told_to_run_no_code() -> None:
    loaders = [(path, call) for path, call in calls() if name_of(call.func).endswith(".from_pretrained")]
    assert len(loaders) > 5
    for path, call in loaders:
        if name_of(call.func).split(".")[-2] in OF_ONE_CLASS:
            continue
        told = {word.arg: word.value for word in call.keywords}
        value = told.get("trust_remote_code")
        assert isinstance(value, ast.Constant), f"{path}:{call.lineno}: expected trust_remote_code=False, found none"
        assert value.value is False, f"{path}:{call.lineno}: {ast.unparse(value)}"


@pytest.mark.house
def test_no_argument_anywhere_allows_remote_code() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            pairs: list[tuple[ast.expr | str | None, ast.expr]] = []
            if isinstance(node, ast.Dict):
                pairs = list(zip(node.keys, node.values, strict=True))
            elif isinstance(node, ast.Call):
                pairs = [(word.arg, word.value) for word in node.keywords]
            for key, value in pairs:
                name = key.value if isinstance(key, ast.Constant) else key
                if name in ("trust_remote_code", "allow_pickle", "engine_host_code_allowed"):
                    assert isinstance(value, ast.Constant), path
                    assert value.value is False, path
                if name == "weights_only":
                    assert isinstance(value, ast.Constant), path
                    assert value.value is True, path


@pytest.mark.engine
def test_vllm_runs_no_remote_code_unless_it_is_told_to() -> None:
    """Nothing is passed, so its default counts."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    parameters = inspect.signature(AsyncEngineArgs).parameters
    assert parameters["trust_remote_code"].default is False


@pytest.mark.parametrize("name", ["a.py", "A.PYC", "x.so", "x.so.1.2", "x/__pycache__/y.txt", "run.sh", "x.DLL"])
def test_code_is_known_by_its_name(name: str) -> None:
    assert is_code(name)
    assert not is_weights(name)


@pytest.mark.parametrize("suffix", PICKLES)
def test_pickles_are_known_by_their_names(suffix: str) -> None:
    assert is_pickle(f"tool/x{suffix}")
    assert is_pickle(f"X{suffix.upper()}")
    assert not is_pickle(f"x{suffix}.json")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "rank0.engine", "tokenizer.model", "x.jinja", "so.txt"]
)
def test_what_models_are_made_of_is_neither(name: str) -> None:
    assert not is_code(name)
    assert not is_pickle(name)
