"""vLLM takes the same kernel of attention as without us, and imports none that it does not take."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.vllm import contract
from runtime.engines.vllm.contract import table
from runtime.engines.vllm.contract.workers import loading
from runtime.engines.vllm.seams import Seams


def platform_of(kernels: dict[str, bool]) -> tuple[ModuleType, list[str]]:
    """vLLM's module as far as it chooses: kernels in their order, and whether each will do; and those looked at."""
    module, looked_at = ModuleType(table.CUDA), []

    class Platform:
        order: ClassVar[dict[str, bool]] = kernels

        @classmethod
        def get_valid_backends(
            cls, device_capability: int, attn_selector_config: Any, num_heads: int | None = None
        ) -> tuple[list[tuple[int, str]], dict[str, str]]:
            valid, reasons = [], {}
            for priority, name in enumerate(module._get_backend_priorities(device_capability, heads=num_heads)):
                looked_at.append(name)
                if cls.order[name]:
                    valid.append((priority, name))
                else:
                    reasons[name] = "will not do"
            return valid, reasons

    vars(module).update({table.PLATFORM: Platform, table.PRIORITIES: lambda capability, heads=None: list(kernels)})
    return module, looked_at


@given(st.dictionaries(st.sampled_from("abcdef"), st.booleans(), max_size=6))
def test_the_first_that_will_do_is_taken_and_none_after_it_is_looked_at(kernels: dict[str, bool]) -> None:
    module, looked_at = platform_of(kernels)
    platform = getattr(module, table.PLATFORM)
    told = {"device_capability": 90, "attn_selector_config": None, "num_heads": 8}
    every, reasons = platform.get_valid_backends(**told)
    looked_at.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, table.CUDA, module)
        contract.look_for_the_first_attention()
    found, why_not = type("Nvml", (platform,), {}).get_valid_backends(**told)
    assert found == every[:1]  # vLLM takes the one of the lowest number
    before = list(kernels)[: every[0][0]] if every else list(kernels)
    assert why_not == {name: reasons[name] for name in before}
    assert set(looked_at) == {*before, *(name for _, name in found)}
    assert getattr(module, table.PRIORITIES)(90) == list(kernels)


def test_what_fails_while_it_looks_is_raised_and_changes_nothing() -> None:
    module, _ = platform_of({"a": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, table.CUDA, module)
        contract.look_for_the_first_attention()
    with pytest.raises(TypeError):
        getattr(module, table.PLATFORM).get_valid_backends()
    assert getattr(module, table.PRIORITIES)(90) == ["a"]


@pytest.mark.parametrize("missing", [table.PLATFORM, table.PRIORITIES, table.VALID])
def test_another_vllm_is_left_alone(
    missing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "seams", Seams("vLLM", contract.SEAMS, ("1", "2")))
    module, _ = platform_of({"a": True, "b": True})
    platform = getattr(module, table.PLATFORM)
    delattr(platform if missing == table.VALID else module, missing)
    monkeypatch.setitem(sys.modules, table.CUDA, module)
    with caplog.at_level(logging.WARNING):
        contract.look_for_the_first_attention()
    assert "first attention" in caplog.text
    if missing != table.VALID:
        assert table.VALID in vars(platform)
