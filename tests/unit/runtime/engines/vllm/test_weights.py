"""Weights are read on many cores where that is known to do, and on one where it turns out that it does not."""

from __future__ import annotations

import importlib.util
import logging
import sys
import weakref
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines import EngineOptionError, EngineOptions
from runtime.engines.vllm import arguments, contract
from runtime.engines.vllm.arguments import _load_format
from runtime.engines.vllm.contract import table
from runtime.engines.vllm.contract.workers import loading
from runtime.engines.vllm.seams import Seams


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType(table.LOADER)
    monkeypatch.setitem(sys.modules, table.LOADER, module)
    # What is given up here is given up for no other test.
    monkeypatch.setattr(loading, "seams", Seams("vLLM", contract.SEAMS, ("1", "2")))
    return module


def reading(module: ModuleType, names: list[str], fails_after: int | None) -> list[str]:
    """Read through a package that fails after so many weights, and return what the engine was given."""

    def many(files: list[str], bar: bool) -> Iterator[tuple[str, Any]]:
        for number, name in enumerate(files):
            if number == fails_after:
                raise RuntimeError("io_uring is not permitted")
            yield f"many {name}", bar
        if fails_after is not None and fails_after >= len(files):
            raise RuntimeError("io_uring is not permitted")

    vars(module).update(
        {table.MANY_CORES: many, table.ONE_CORE: lambda files, bar: iter((f"one {name}", bar) for name in files)}
    )
    contract.read_on_one_core_else()
    return [name for name, _ in getattr(module, table.MANY_CORES)(names, False)]


def test_what_the_package_reads_is_given_as_it_is(loader: ModuleType) -> None:
    assert reading(loader, ["a", "b"], None) == ["many a", "many b"]
    assert reading(loader, [], None) == []


def test_a_package_that_cannot_begin_is_done_without(loader: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert reading(loader, ["a", "b"], 0) == ["one a", "one b"]
    assert "io_uring is not permitted" in caplog.text


@given(st.lists(st.text("abc", max_size=3), max_size=5), st.one_of(st.none(), st.integers(0, 6)))
def test_every_weight_comes_once_or_the_start_fails(names: list[str], fails_after: int | None) -> None:
    module = ModuleType(table.LOADER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, table.LOADER, module)
        begun = fails_after not in (None, 0) and bool(names)
        if begun:
            with pytest.raises(RuntimeError, match="io_uring"):
                reading(module, names, fails_after)
        else:
            assert [name.partition(" ")[2] for name in reading(module, names, fails_after)] == names


def test_a_vllm_without_the_functions_is_left_alone(loader: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        contract.read_on_one_core_else()
    assert not hasattr(loader, table.MANY_CORES)


CASES = [
    (EngineOptions(), True, "instanttensor"),
    (EngineOptions(), False, None),
    (EngineOptions(weights_loader="safetensors"), True, None),
    (EngineOptions(tensor_parallel_size=2), True, None),
    (EngineOptions(pipeline_parallel_size=2), True, None),
    (EngineOptions(tensor_parallel_size=2, weights_loader="instanttensor"), True, "instanttensor"),
]


@pytest.mark.parametrize(("options", "there", "expected"), CASES)
def test_many_cores_read_where_that_is_known_to_do(
    options: EngineOptions, there: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments.contract, "seams", SimpleNamespace(holds=lambda _: True))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if there else None)
    assert _load_format(options, on_cpu=False) == expected


@pytest.mark.parametrize(("holds", "there"), [(True, False), (False, True)])
def test_a_package_that_was_asked_for_and_is_not_there_is_refused(
    holds: bool, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments.contract, "seams", SimpleNamespace(holds=lambda _: holds))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if there else None)
    assert _load_format(EngineOptions(), on_cpu=False) is None
    with pytest.raises(EngineOptionError, match="WEIGHTS_LOADER: expected safetensors or auto"):
        _load_format(EngineOptions(weights_loader="instanttensor"), on_cpu=False)


def test_on_a_cpu_there_is_nothing_to_bring() -> None:
    assert _load_format(EngineOptions(), on_cpu=True) is None
    with pytest.raises(EngineOptionError, match="on a CPU"):
        _load_format(EngineOptions(weights_loader="instanttensor"), on_cpu=True)


class Weight:
    """Something that can be told to be gone."""


def test_no_weight_is_held_longer_than_it_is_read(loader: ModuleType) -> None:
    """The first may be the largest: an embedding of gigabytes."""

    def many(files: list[str], bar: bool) -> Iterator[tuple[str, Any]]:
        for name in files:
            yield name, Weight()

    vars(loader).update({table.MANY_CORES: many, table.ONE_CORE: many})
    contract.read_on_one_core_else()
    seen: list[weakref.ref[Weight]] = []
    for _, weight in getattr(loader, table.MANY_CORES)(["a", "b", "c"], False):
        assert all(one() is None for one in seen[:-1])
        seen.append(weakref.ref(weight))
        del weight
    assert len(seen) == 3


def test_what_a_failed_attempt_held_is_gone_when_the_other_way_begins(loader: ModuleType) -> None:
    held: list[weakref.ref[Weight]] = []

    def many(files: list[str], bar: bool) -> Iterator[tuple[str, Any]]:
        buffer = Weight()
        held.append(weakref.ref(buffer))
        raise MemoryError(buffer.__class__.__name__)
        yield "never", None

    vars(loader).update({table.MANY_CORES: many, table.ONE_CORE: lambda files, bar: iter([(held[0](), bar)])})
    contract.read_on_one_core_else()
    assert [weight for weight, _ in getattr(loader, table.MANY_CORES)(["a"], False)] == [None]


def test_where_ranks_share_a_model_none_goes_its_own_way(loader: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would wait for it without end."""
    monkeypatch.setattr(loading, "_ranks_share", lambda: True)
    with pytest.raises(RuntimeError, match="io_uring"):
        reading(loader, ["a"], 0)
