"""Integers are multiplied rightly on any CPU: INT8 where an instruction cuts sums off, 4 bits where no kernel is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from runtime.engines.vllm import contract
from runtime.engines.vllm.contract.workers import cpu

pytestmark = pytest.mark.engine


def not_called(*given: object, **named: object) -> None:
    """Stands for vLLM's own code, which must not be needed."""
    raise AssertionError("vLLM's own was called")


def cut_off(handler: object, x: object, output: Any, *others: object) -> Any:
    """A product whose sums are cut off."""
    return output.fill_(2**15)


def small(shape: tuple[int, ...], most: int) -> Any:
    """Integers of INT8 up to so many, the largest among them."""
    import torch

    numbers = torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(most)).to(torch.int8)
    numbers[..., 0] = most
    return numbers


@pytest.mark.parametrize("rows", [1, 7, 8, 40])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("around", ["zero", "elsewhere", "far from zero"])
@pytest.mark.parametrize("channels", [False, True])
def test_int8_in_float_is_the_product_of_the_integers(rows: int, biased: bool, around: str, channels: bool) -> None:
    import torch

    weight, x = small((32, 64), 127), small((rows, 64), 127)
    around_zero = around == "zero"
    scales = torch.rand(32, 1) if channels else torch.rand(1)
    handler = cpu.int8_weights(lambda *given: None, cut_off)(weight.t(), scales, torch.bfloat16, True, False, 32)
    assert (handler.k, handler.n) == (64, 32)
    scale, bias = torch.rand(rows, 1), torch.randn(32) if biased else None
    zero = None if around_zero else torch.randint(-9, 9, (rows, 1), dtype=torch.int32)
    if around == "far from zero":  # as where one activation is large: the others lie near to one end
        x, zero = torch.randint(-127, -122, (rows, 64)).to(torch.int8), torch.full((rows, 1), -125, dtype=torch.int32)
    each = scales.reshape(1, -1).double()
    moved = x.double() if zero is None else x.double() - zero
    exact = scale * each * (moved @ weight.double().t()) + (0 if bias is None else bias)
    beside = weight.sum(1, dtype=torch.float32)[None] * scales.squeeze()
    found = torch.empty(rows, 32, dtype=torch.bfloat16)
    given = cpu.int8_product(not_called)(handler, x, found, scale, zero, None if zero is None else beside, bias)
    assert given is found
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=float(exact.abs().max()) * 2**-7)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_weights_in_4_bits_are_unpacked_from_how_vllms_kernel_has_them(zeros: bool, groups: int) -> None:
    """Packed by vLLM's own code for CPUs."""
    import torch
    from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel as Kernel
    from vllm.model_executor.layers.quantization.utils.quant_utils import pack_quantized_values_into_int32 as pack
    from vllm.scalar_type import scalar_types

    inputs, outputs = 64, 96
    kind = scalar_types.uint4 if zeros else scalar_types.uint4b8
    seeded = torch.Generator().manual_seed(groups)
    weight = torch.randint(0, 16, (inputs, outputs), dtype=torch.int32, generator=seeded)
    scales = torch.rand(groups, outputs, generator=seeded)
    zero = torch.randint(0, 16, (groups, outputs), dtype=torch.int32, generator=seeded)
    layer = SimpleNamespace(weight_packed=torch.nn.Parameter(pack(weight, kind, 0), requires_grad=False), scales=scales)
    kernel = SimpleNamespace(config=SimpleNamespace(weight_type=kind), w_q_name="weight_packed", w_s_name="scales")
    Kernel._process_gptq_weights_w4a16(kernel, layer)

    group = torch.arange(inputs) // (inputs // groups)
    exact = (weight - (zero[group] if zeros else 8)) * scales[group]
    packed_zeros = pack(zero, kind, 1) if zeros else None
    x, bias = torch.randn(9, inputs), torch.randn(outputs)
    mixed = torch.randperm(inputs, generator=seeded)  # inputs whose groups are in no order
    with pytest.MonkeyPatch.context() as patch:
        for at_a_time in (1, 3 * 16 * inputs, 1 << 20):  # the last part smaller
            patch.setattr(cpu, "UNPACKED_AT_A_TIME", at_a_time)
            found = cpu.unpacked(layer.weight_packed, scales, packed_zeros, group, torch.float32)
            torch.testing.assert_close(found, exact.t())
    moved = cpu.unpacked(layer.weight_packed, scales, packed_zeros, group[mixed], torch.float32)
    torch.testing.assert_close(moved, ((weight - (zero[group[mixed]] if zeros else 8)) * scales[group[mixed]]).t())
    for _ in range(2):  # the second time they are there
        found = cpu.four_bits_in_float(
            input=x,
            q_weight=layer.weight_packed,
            scales=scales,
            zeros=packed_zeros,
            bias=bias,
            pack_factor=8,
            isa_hint="vec",
        )
        torch.testing.assert_close(found, x @ exact + bias)
    # Only how they were packed is kept of those that were: nobody else has them.
    assert layer.weight_packed.untyped_storage().nbytes() == 0
    assert layer.weight_packed.numel() == inputs * outputs // 8


def test_a_cpu_multiplies_integers_rightly_whatever_it_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here, and where sums are cut off at 16 bits and no kernel is for 4 bits."""
    import torch
    from vllm import _custom_ops as ops

    for name in ("create_onednn_scaled_mm", "onednn_scaled_mm", "cpu_gemm_wna16"):
        monkeypatch.setattr(ops, name, getattr(ops, name))
    contract.multiply_integers_in_float()
    own = torch.get_default_dtype()
    try:
        for default in (torch.bfloat16, torch.float32):  # vLLM loads a model in the one, and serves it in the other
            torch.set_default_dtype(default)
            assert cpu.int8_is_right(ops.create_onednn_scaled_mm, ops.onednn_scaled_mm)
    finally:
        torch.set_default_dtype(own)

    monkeypatch.setattr(ops, "create_onednn_scaled_mm", lambda *given: None)
    monkeypatch.setattr(ops, "onednn_scaled_mm", cut_off)
    monkeypatch.setattr(ops, "cpu_gemm_wna16", not_called)  # a name that vLLM has no kernel of
    assert not cpu.int8_is_right(ops.create_onednn_scaled_mm, ops.onednn_scaled_mm)
    contract.multiply_integers_in_float()
    assert cpu.int8_is_right(ops.create_onednn_scaled_mm, ops.onednn_scaled_mm)
    assert ops.cpu_gemm_wna16 is cpu.four_bits_in_float

    monkeypatch.setattr(contract.seams, "_wrong", {})
    monkeypatch.setattr(contract.seams, "_warned", set())
    monkeypatch.delattr(ops, "onednn_scaled_mm")
    contract.multiply_integers_in_float()
    assert "integers on a CPU" in caplog.text


@pytest.mark.parametrize("wrong", [1, 16])
def test_it_is_wrong_where_either_kernel_is(wrong: int) -> None:
    def multiply(handler: object, x: Any, output: Any, *others: object) -> Any:
        return output.fill_(2**15 if len(output) == wrong else x.shape[1] * 127 * 127)

    assert not cpu.int8_is_right(lambda *given: None, multiply)


def test_where_they_are_right_vllms_own_is_used_and_tried_once() -> None:
    import torch

    made: list[tuple[Any, ...]] = []

    def create(*given: Any) -> str:
        made.append(given)
        return "its own handle"

    def multiply(handler: object, x: Any, output: Any, *others: object) -> Any:
        assert handler == "its own handle"
        return output.fill_((64 if len(output) == 1 else 512) * 127 * 127)

    weights, product = cpu.int8_weights(create, multiply), cpu.int8_product(multiply)
    given = (small((8, 4), 9), torch.ones(1), torch.bfloat16, True, False, 32)
    own = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # as vLLM has it while it loads a model
    try:
        for _ in range(3):
            assert weights(*given) == "its own handle"
    finally:
        torch.set_default_dtype(own)
    one, many, *others = made
    assert others == [given] * 3
    for tried in (one, many):
        assert (tried[1].dtype, tried[2]) == (torch.float32, torch.float32)
    assert product("its own handle", None, torch.zeros(1), None, None, None, None) == 64 * 127 * 127
