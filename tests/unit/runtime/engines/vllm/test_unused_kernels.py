"""What no model here uses is not imported at a start, and what one uses is warmed and watched as ever."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest

from runtime.engines.vllm import contract
from runtime.engines.vllm.contract import table
from runtime.engines.vllm.contract.workers import loading
from runtime.engines.vllm.seams import Seams

Called = list[str]


@pytest.fixture
def called() -> Called:
    """What was called of vLLM's."""
    return []


@pytest.fixture(autouse=True)
def vllm(called: Called, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """vLLM's modules, as far as they are asked; a model is its routers' shapes."""
    monitor, warming = ModuleType(table.MONITOR), ModuleType(table.WARMING)
    vars(monitor).update(
        {table.CUTE: lambda: called.append("watch CuTeDSL"), table.TILES: lambda: called.append("watch TileLang")}
    )
    vars(warming).update(
        {table.ROUTERS: lambda model: called.append(f"warm {model}"), table.ROUTER_SHAPES: lambda model: model}
    )
    modules = {table.MONITOR: monitor, table.WARMING: warming}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("cutlass", "tilelang"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(loading, "seams", Seams("vLLM", contract.SEAMS, ("1", "2")))
    return modules


def start(vllm: dict[str, ModuleType], model: tuple[str, ...] = ()) -> None:
    """Do what a start does with them."""
    if routers := getattr(vllm[table.WARMING], table.ROUTERS, None):
        routers(model)
    for name in (table.CUTE, table.TILES):
        if watch := getattr(vllm[table.MONITOR], name, None):
            watch()


def test_what_nothing_has_imported_is_neither_warmed_nor_watched(vllm: dict[str, ModuleType], called: Called) -> None:
    start(vllm)
    assert called == ["warm ()", "watch CuTeDSL", "watch TileLang"]
    called.clear()
    contract.import_no_unused_kernels()
    start(vllm)
    assert called == []


def test_a_model_with_routers_has_its_kernels_warmed_and_what_it_imports_is_watched(
    vllm: dict[str, ModuleType], called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract.import_no_unused_kernels()
    monkeypatch.setitem(sys.modules, "cutlass", ModuleType("cutlass"))
    start(vllm, ("4096",))
    assert called == ["warm ('4096',)", "watch CuTeDSL"]
    monkeypatch.setitem(sys.modules, "tilelang", ModuleType("tilelang"))
    start(vllm)
    assert called[2:] == ["watch CuTeDSL", "watch TileLang"]


def test_a_package_that_could_not_be_imported_is_not_watched(
    vllm: dict[str, ModuleType], called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract.import_no_unused_kernels()
    monkeypatch.setitem(sys.modules, "cutlass", None)
    start(vllm)
    assert called == []


@pytest.mark.parametrize("missing", [table.TILES, table.ROUTERS, table.ROUTER_SHAPES])
def test_a_release_without_the_newer_ones_is_served_as_it_is(
    missing: str, vllm: dict[str, ModuleType], called: Called, caplog: pytest.LogCaptureFixture
) -> None:
    delattr(vllm[table.MONITOR if missing == table.TILES else table.WARMING], missing)
    contract.import_no_unused_kernels()
    start(vllm)
    assert called == (["warm ()"] if missing == table.ROUTER_SHAPES else [])
    assert not caplog.records


@pytest.mark.parametrize("missing", [table.MONITOR, table.CUTE])
def test_another_vllm_is_left_alone(
    missing: str,
    vllm: dict[str, ModuleType],
    called: Called,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if missing == table.MONITOR:
        monkeypatch.setitem(sys.modules, missing, None)
    else:
        delattr(vllm[table.MONITOR], missing)
    with caplog.at_level(logging.WARNING):
        contract.import_no_unused_kernels()
    assert "unused kernels" in caplog.text
    start(vllm)
    assert "warm ()" in called
