"""Every use of vLLM's insides, against what three releases have there.

`tests/data/vllm_api.json` is recorded from their wheels (`python -m tests.harness.vllm.api`).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from runtime.engines import vllm as room
from runtime.engines.vllm.contract import RECORDED, SEAMS
from runtime.engines.vllm.seams import Need, Seam, read_need, takes
from tests.harness.vllm import api

RECORDING = api.load()
ROOM = Path(room.__file__).parent
NEEDS = [(seam, need) for seam in SEAMS for need in (*seam.needs, *seam.met)]


def unmet(need: Need, recorded: dict[str, str | None]) -> str | None:
    """What a release lacks of a need; none when it is met."""
    line = recorded[need.target]
    if line is None:
        return f"no {need.target}"
    if need.call is None:
        return None
    signature = api.signature(line)
    if signature is None:
        return f"{need.target} cannot be called: {line}"
    count, keywords = need.call
    return takes(signature, (count + (next(iter(signature.parameters), "") == "self"), keywords))


@pytest.mark.parametrize("release", RECORDED)
@pytest.mark.parametrize(("seam", "need"), NEEDS, ids=[f"{seam.name}-{need}" for seam, need in NEEDS])
def test_each_release_has_what_each_seam_needs(release: str, seam: Seam, need: str) -> None:
    assert unmet(read_need(need), RECORDING[release]) is None


@pytest.mark.parametrize("need", [need for seam in SEAMS for need in seam.since])
def test_the_last_release_has_what_seams_need_since_then(need: str) -> None:
    assert unmet(read_need(need), RECORDING[RECORDED[-1]]) is None


@pytest.mark.parametrize("release", RECORDED)
@pytest.mark.parametrize("need", api.SEVERAL_HOSTS)
def test_each_release_has_what_the_page_on_scaling_says_of_several_hosts(release: str, need: str) -> None:
    assert unmet(read_need(need), RECORDING[release]) is None


def test_the_recording_is_of_these_releases_and_these_needs() -> None:
    assert tuple(RECORDING) == RECORDED
    for release in RECORDED:
        assert sorted(RECORDING[release]) == api.targets()


def test_every_seam_says_what_is_lost_and_what_would_end_it() -> None:
    names = [seam.name for seam in SEAMS]
    assert len(set(names)) == len(names)
    for seam in SEAMS:
        assert seam.lost
        assert seam.needs or seam.met
        assert seam.upstream == "none known" or seam.upstream.startswith("vllm-project/vllm#")


# The contract can fail.


@pytest.mark.parametrize(
    "need",
    [
        "vllm.v1.engine.async_llm:AsyncLLM.abort(_, _, _)",
        "vllm.v1.engine.async_llm:AsyncLLM.add_request(_, _)",
        "vllm.v1.engine.async_llm:AsyncLLM.shutdown(wait=_)",
        "vllm.v1.engine.async_llm:AsyncLLM.errored()",
        "vllm.v1.engine.async_llm:AsyncLLM(_, _)",
        "vllm.sampling_params:SamplingParams(topk=_)",
        "vllm.v1.executor.abstract:Executor.get_class()",
    ],
)
@pytest.mark.parametrize("release", RECORDED)
def test_a_call_that_does_not_fit_is_noticed(release: str, need: str) -> None:
    assert unmet(read_need(need), RECORDING[release])


SOURCE = {
    "vllm/a.py": """
from vllm.b import Base, Fields as Other
from . import b
class Own(Base, b.Stranger):
    member = 1
    async def asked(self, first: int, *, word: str = "x"): ...
    @property
    def seen(self): ...
    @staticmethod
    def plain(one): return "text"
if True:
    try:
        table = {"KEY": 1, **other}
    except ImportError:
        Late = 1
""",
    "vllm/b.py": """
class Base:
    def __init__(self, config, size=3):
        self.size: int = size
        self.other = self.twin = config
class Fields:
    name: str
    kind: str = "x"
class Grown(Fields):
    more: int = 0
""",
}


@pytest.mark.parametrize(
    ("need", "line"),
    [
        ("vllm.a:Own", "class Own(Base, b.Stranger)"),
        ("vllm.a:Own(_)", "def __init__(self, config, size=3):"),
        ("vllm.a:Own.asked(_, word=_)", "async def asked(self, first, *, word='x'):"),
        ("vllm.a:Own.seen", "seen  # property"),
        ("vllm.a:Own.plain(_)", "static def plain(one):"),
        ("vllm.a:Own.plain 'text'", "static def plain(one):"),
        ("vllm.a:Own.plain 'texts'", None),
        ("vllm.a:Own.member", "member = 1"),
        ("vllm.a:Own.size", "self.size: int = size"),
        ("vllm.a:Own.twin", "self.other = self.twin = config"),
        ("vllm.a:Own.missing", None),
        ("vllm.a:Other.name", "name: str"),
        ("vllm.b:Grown(name=_)", "def __init__(self, *, name):"),
        ("vllm.a:Late", "Late = 1"),
        ("vllm.a:table[KEY]", "table['KEY']"),
        ("vllm.a:table[LOCK]", None),
        ("vllm.a:Missing.member", None),
        ("vllm.missing:Own", None),
    ],
)
def test_the_recorder_finds_what_is_there_and_nothing_else(need: str, line: str | None) -> None:
    files = {path: text.encode() for path, text in SOURCE.items()}
    assert api.Release(files.get).line(read_need(need)) == line


# The names stand in one room.


def modules() -> list[Path]:
    return sorted(ROOM.glob("*.py"))


class Imports(ast.NodeVisitor):
    """Packages that a module imports when it runs."""

    def __init__(self, tree: ast.AST) -> None:
        self.found: set[str] = set()
        self.visit(tree)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name.partition(".")[0] for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.found.add((node.module or "").partition(".")[0])


@pytest.mark.house
@pytest.mark.parametrize("path", modules(), ids=lambda path: path.name)
def test_no_other_module_imports_vllm(path: Path) -> None:
    assert not Imports(ast.parse(path.read_text("utf-8"))).found & {"vllm", "tokenizers"}


# What is no name of ours either: vLLM's documented interface, or words that everybody uses.
ORDINARY = {
    "abort", "outputs", "finished", "num_cached_tokens", "prompt_logprobs", "text", "token_ids", "finish_reason",
    "logprob", "rank", "generate", "shutdown", "errored", "put", "model", "reset_prefix_cache", "tokenizer", "stream",
    "usage", "cudagraph_mode", "collective_rpc", "determine_available_memory",
}  # fmt: skip


@pytest.mark.house
@pytest.mark.parametrize("path", modules(), ids=lambda path: path.name)
def test_no_other_module_uses_a_private_name(path: Path) -> None:
    private = {read_need(need).path.rpartition(".")[2] for _, need in NEEDS} - ORDINARY
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    assert not private & {node.attr for node in nodes if isinstance(node, ast.Attribute)}
