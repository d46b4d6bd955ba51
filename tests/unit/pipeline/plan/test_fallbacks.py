"""What is planned can be done: every method of a chain, every path, and a place of its own for each model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline import paths
from pipeline.lanes import METHODS
from pipeline.lanes.gate_specs import PERPLEXITY_RATIO
from pipeline.plan import BuildPlan, BuildRequest, disk_facts, hardware, prepare
from pipeline.problem import WrongRequestError
from tests.harness.builds import standins
from tests.harness.trt import lane

REQUEST = BuildRequest(chat="embedded", lanes=("cpu",), method="awq")
BAD_NAMES = [
    "~nobody-of-that-name/x",
    "a" * 5000,
    "a" * 300,
    os.fsdecode(b"caf\xe9"),
    "a\0b",
]
ODD_NAMES = ["a b", "模型", "x[/b]y", "new\nline", "-dash", ":smile:", "'", '"', "é", "a\u202eb", "%s", "{x}"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for width in (100, 256):
        lane.model(folder / str(width), max_position_embeddings=8192, intermediate_size=width)
    (folder / "texts.txt").write_text("A text of more than eight words, to calibrate on it.\n")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@contextmanager
def machine(free_disk: int = 2**40) -> Iterator[None]:
    here = replace(standins.describe(Path(), None), free_disk=free_disk)
    with mock.patch.object(hardware, "describe", return_value=here):
        yield


def plan(
    request: BuildRequest, cache: Path = Path("cache"), environment: dict[str, str] | None = None
) -> BuildPlan | list[str]:
    """The plan, or every problem."""
    try:
        return prepare.prepare(request, cache, environment or {}).plan
    except WrongRequestError as error:
        return [str(problem) for problem in error.problems]


METHOD_WORDS = st.sampled_from([*METHODS, "8bit", "", "magic"])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    method=st.sampled_from([*METHODS, "4bit", "8bit", None]),
    chain=st.lists(METHOD_WORDS, max_size=4),
    model=st.sampled_from(["embedded", "100", "256", "only the classifier"]),
    dataset=st.sampled_from(["", "embedded", "texts.txt", "missing.txt", "what is this"]),
    emulated=st.booleans(),
    bound=st.booleans(),
)
@example("awq", ["gptq", "gptq"], "embedded", "", False, False)
@example("int8", ["awq"], "100", "embedded", False, False)
@example("fp8", ["int8"], "embedded", "missing.txt", True, False)
def test_what_a_chain_comes_to_was_planned(
    models: Path, method: str | None, chain: list[str], model: str, dataset: str, emulated: bool, bound: bool
) -> None:
    named = model if model == "embedded" else str(models / model)
    request = BuildRequest(
        chat=None if model == "only the classifier" else named,
        tool="embedded",
        lanes=("cpu",),
        method=method,
        fallback=tuple(chain),
        allow_emulated=emulated,
        thresholds={PERPLEXITY_RATIO: 2.0} if bound else {},
    )
    text = str(models / dataset) if dataset.endswith(".txt") else dataset
    environment = {"AWQ_CALIB_DATASET": text}
    with machine():
        made = plan(request, environment=environment)
        if isinstance(made, list):
            assert made
            assert len(set(made)) == len(made)
            return
        # What `run` does after each failed gate.
        tried = {made.chat.method} if made.chat else set()
        while request.fallback:
            request = replace(request, method=request.fallback[0], fallback=request.fallback[1:])
            made = plan(request, environment=environment)
            assert isinstance(made, BuildPlan), made
            assert made.chat is not None
            assert made.chat.method not in tried
            tried.add(made.chat.method)


def test_what_is_wrong_with_any_method_is_told_together(models: Path) -> None:
    request = replace(REQUEST, chat=str(models / "100"), method="int8", fallback=("awq", "int8", "magic"))
    with machine():
        told = plan(request, environment={"AWQ_CALIB_DATASET": "what is this"})
    assert isinstance(told, list)
    assert sorted(line.split(": expected")[0] for line in told) == [
        "--fallback",
        "--fallback",
        "--fallback awq: CHAT_MODEL",
        "AWQ_CALIB_DATASET",
    ]


def test_a_chain_needs_room_for_what_its_methods_leave() -> None:
    chain = replace(REQUEST, fallback=("gptq", "int8"))
    with machine():
        made = plan(REQUEST)
        assert isinstance(made, BuildPlan)
    with machine(free_disk=made.estimate.disk_bytes):
        assert isinstance(plan(REQUEST), BuildPlan)
        told = plan(chain)
    assert isinstance(told, list)
    assert [line.partition(":")[0] for line in told] == ["disk"]
    with machine(free_disk=2 * made.estimate.disk_bytes + 2**30):
        assert isinstance(plan(chain), BuildPlan)


@pytest.mark.parametrize("classifier", ["embedded"])
def test_a_classifier_has_no_other_method(classifier: str) -> None:
    with machine():
        told = plan(BuildRequest(tool=classifier, lanes=("cpu",), fallback=("gptq",)))
    assert told == [
        "--fallback: expected a chat model, for another method, found a classifier, which stays in float; leave it out"
    ]


# Paths

PLACES = ["--out", "--cache-dir", "AWQ_CACHE_DIR", "QUANTIZE_PYTHON", "CHAT_MODEL", "TOOL_MODEL", "XDG_CACHE_HOME"]


def with_name(place: str, name: str) -> BuildPlan | list[str]:
    request, cache, environment = REQUEST, Path("cache"), {}
    if place == "--out":
        request = replace(request, out=Path(name))
    elif place == "--cache-dir":
        cache = Path(name)
    elif place == "CHAT_MODEL":
        request = replace(request, chat=name)
    elif place == "TOOL_MODEL":
        request = replace(request, tool=name)
    else:
        environment[place] = name
    with machine():
        try:
            return prepare.prepare(request, None if "CACHE" in place else cache, environment).plan
        except WrongRequestError as error:
            return [str(problem) for problem in error.problems]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_cannot_be_is_refused_with_its_place(place: str, name: str) -> None:
    if place == "XDG_CACHE_HOME" and not name.startswith("~"):
        name = f"/{name}"
    told = with_name(place, name)
    assert isinstance(told, list)
    (line,) = told
    assert line.startswith(f"{place}: expected ")


@pytest.mark.parametrize("place", PLACES)
def test_bad_names_are_told_together(place: str) -> None:
    with machine():
        told = plan(
            replace(REQUEST, out=Path("~nobody-of-that-name/x"), chat="a" * 5000, fallback=("magic",)),
            Path("~nobody-of-that-name/y"),
            {"QUANTIZE_PYTHON": "a" * 5000, "AWQ_NSAMPLES": "many"},
        )
    assert isinstance(told, list)
    assert {line.partition(":")[0] for line in told} == {
        *("--out", "--cache-dir", "CHAT_MODEL", "--fallback", "QUANTIZE_PYTHON", "AWQ_NSAMPLES")
    }


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(PLACES), st.text(st.characters(exclude_categories=()), min_size=1))
@example("CHAT_MODEL", "org/模型")
@example("CHAT_MODEL", "org/..")
@example("CHAT_MODEL", "org/a--b")
@example("CHAT_MODEL", "-/-")
def test_any_name_is_planned_or_refused(place: str, name: str) -> None:
    if place != "XDG_CACHE_HOME" or not name.startswith("~"):
        with_name(place, name)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_that_can_be_is_planned(models: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(models / "256")
    with machine():
        made = plan(replace(REQUEST, chat=str(tmp_path / name), out=tmp_path / "out" / name), tmp_path / f"c{name}", {
            "AWQ_CALIB_DATASET": "embedded"
        })  # fmt: skip
    assert isinstance(made, BuildPlan), made
    assert made.out == tmp_path / "out" / name


@pytest.mark.parametrize("variable", ["AWQ_CACHE_DIR", "--cache-dir"])
def test_a_cache_that_cannot_be_is_refused(tmp_path: Path, variable: str) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/x", Path("/proc/nope")):
        told = with_name(variable, str(folder))
        assert isinstance(told, list)
        assert told[0].startswith(f"{variable}: expected a folder that can be written")


def test_a_cache_variable_that_is_not_absolute_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with machine():
        found = prepare.prepare(REQUEST, None, {"XDG_CACHE_HOME": "relative"}).cache
    assert found == tmp_path / ".cache/yap-pipeline"


def test_a_place_on_another_disk_needs_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "same_file_system", lambda *_: False)
    monkeypatch.setattr(paths, "free_bytes", lambda path: 1000 if path.parts[-2:] == ("small", "x") else 2**40)
    with machine():
        told = plan(replace(REQUEST, out=Path("small/x")))
        assert isinstance(plan(replace(REQUEST, out=Path("large/x"))), BuildPlan)
    assert isinstance(told, list)
    assert told[0].startswith("--out: expected 0.1 GiB free there, found 0.0 GiB; free some")


# A place for each model


def test_two_models_have_two_places(models: Path, tmp_path: Path) -> None:
    names = [*ODD_NAMES, "聊天", "a-b", "Llama", "llama", "x/llama", "y/llama", "e\u0301"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).mkdir()
        for file in (models / "256").iterdir():
            os.link(file, tmp_path / name / file.name)
    places = []
    with machine():
        for name in ["embedded", *(str(tmp_path / name) for name in names)]:
            made = plan(replace(REQUEST, chat=name), environment={"AWQ_CALIB_DATASET": "embedded"})
            assert isinstance(made, BuildPlan), made
            assert made.out.parent == disk_facts.ARTIFACTS
            places.append(made.out)
        other = plan(replace(REQUEST, chat=str(tmp_path / "llama/"), method="gptq"), environment={
            "AWQ_CALIB_DATASET": "embedded"
        })  # fmt: skip
    assert isinstance(other, BuildPlan)
    assert len({*places, other.out}) == len(names) + 2
