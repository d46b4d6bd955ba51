"""Products in bfloat16 are the same, to one rounding, where they are computed in float32; and only those are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.host import arithmetic

torch = pytest.importorskip("torch")

# One rounding to bfloat16, of a sum that is itself added up in another order.
NEAR = {"rtol": 2**-7, "atol": 2**-7}
SIZES = st.integers(1, 24)
BATCHES = st.lists(st.integers(1, 3), max_size=2)

# What a process prints: whether it multiplies in float32, whether the processor has bfloat16, and what was changed.
TOLD = """
import json, torch
from runtime.host.arithmetic import MATMULS, multiply_in_float32
places = [(torch.nn.functional, "linear"), *((at, name) for at in (torch, torch.Tensor) for name in MATMULS)]
places.append((torch.Tensor, "__matmul__"))
before = [getattr(*place) for place in places]
{said}
changed = multiply_in_float32()
after = [getattr(*place) for place in places]
layer = torch.nn.Linear(64, 32, dtype=torch.bfloat16)
given = torch.ones(4, 16, 64, dtype=torch.bfloat16)
torch.set_default_dtype(torch.bfloat16)  # as vLLM has it while it loads a model
with torch.inference_mode():
    exact = given.float() @ layer.weight.float().T + layer.bias.float()
    near = torch.allclose(layer(given).float(), exact, atol=2**-6)
print(json.dumps([changed, [one is not other for one, other in zip(before, after)], near]))
"""


def numbers(*shape: int, seed: int) -> object:
    """A tensor in bfloat16."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def counting(own: Callable, called: list[object], sizes: list[int] | None = None) -> Callable:
    """A product that tells in which type it is called, and of how many numbers the second is."""

    def product(*given: object, **named: object) -> object:
        called.append(given[0].dtype)
        if sizes is not None:
            sizes.append(given[1].numel())
        return own(*given, **named)

    return product


@given(
    batch=BATCHES,
    rows=SIZES,
    inputs=SIZES,
    outputs=SIZES,
    biased=st.booleans(),
    few=st.integers(1, 200),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_a_layers_product_is_torchs_to_a_rounding(
    batch: list[int], rows: int, inputs: int, outputs: int, biased: bool, few: int, seed: int
) -> None:
    own = torch.nn.functional.linear
    called: list[object] = []
    x, weight = numbers(*batch, rows, inputs, seed=seed), numbers(outputs, inputs, seed=seed + 1)
    bias = numbers(outputs, seed=seed + 2) if biased else None
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "WEIGHTS_AT_A_TIME", few)  # in parts of any size, the last one smaller
        found = arithmetic.linear_in_float32(counting(own, called))(x, weight, bias)
        exact = own(x.double(), weight.double(), None if bias is None else bias.double())
    many = x.numel() // inputs >= arithmetic.FEW_ROWS
    assert called == ([] if many else [torch.bfloat16])
    assert found.dtype is torch.bfloat16
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, **(NEAR if many else {"rtol": 2**-5, "atol": 2**-4}))


@given(data=st.data(), rows=SIZES, inputs=SIZES, columns=SIZES, turned=st.booleans(), few=st.integers(1, 2000))
@settings(max_examples=300, deadline=None)
def test_any_product_is_torchs_to_a_rounding(
    data: st.DataObject, rows: int, inputs: int, columns: int, turned: bool, few: int
) -> None:
    called: list[object] = []
    sizes: list[int] = []
    batch, seed = data.draw(BATCHES), data.draw(st.integers(0, 99))
    # Fewer dimensions than the other, or one of 1, stand for as many as the other has.
    others, mine = ([data.draw(st.sampled_from([size, 1])) for size in batch] for _ in range(2))
    others = others[data.draw(st.integers(0, len(others))) :]
    first = numbers(*mine, rows, inputs, seed=seed)
    second = (
        numbers(*others, columns, inputs, seed=seed + 1).mT
        if turned
        else numbers(*others, inputs, columns, seed=seed + 1)
    )
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "NUMBERS_AT_A_TIME", few)
        found = arithmetic.matmul_in_float32(counting(torch.matmul, called, sizes))(first, second)
        exact = first.double() @ second.double()
    # Of many matrices each is multiplied by rows of its own.
    many = (rows if others else first.numel() // inputs) >= arithmetic.FEW_ROWS
    assert set(called) == {torch.float32 if many else torch.bfloat16}
    assert found.dtype is torch.bfloat16
    assert found.shape == exact.shape
    if many:
        assert max(sizes) <= max(few, inputs)
    torch.testing.assert_close(found.double(), exact, **(NEAR if many else {"rtol": 2**-5, "atol": 2**-4}))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(1, 40))
def test_boxes_hold_each_place_once_and_no_more_than_they_may(sizes: list[int], most: int) -> None:
    space = torch.zeros(sizes, dtype=torch.int32)
    for box in arithmetic.boxes(sizes, most):
        assert space[box].numel() <= most
        space[box] += 1
    assert space.eq(1).all()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.ones(16, 4), torch.ones(4, 4)),
        (torch.ones(16, 4).half(), torch.ones(4, 4).half()),
        (torch.ones(16, 4, device="meta").bfloat16(), torch.ones(4, 4, device="meta").bfloat16()),
        (torch.ones(4).bfloat16(), torch.ones(4, 4).bfloat16()),
        (torch.ones(16, 0).bfloat16(), torch.ones(4, 0).bfloat16().mT),
        (torch.ones(16, 1, 4).bfloat16(), torch.ones(16, 4, 64).bfloat16()),
    ],
    ids=["float32", "float16", "of no device", "one row", "of nothing", "one row for each matrix"],
)
def test_what_is_something_else_is_left_to_torch(first: object, second: object) -> None:
    called: list[object] = []
    with torch.inference_mode():
        found = arithmetic.matmul_in_float32(counting(torch.matmul, called))(first, second)
    assert called == [first.dtype]
    assert found.dtype is first.dtype


def test_who_names_an_argument_has_torchs_own() -> None:
    product = arithmetic.matmul_in_float32(torch.matmul)
    first, second = numbers(16, 4, seed=1), numbers(4, 4, seed=2)
    out = torch.empty(16, 4, dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = torch.matmul(first, second)
        assert product(first, second, out=out) is out
        for found in (out, product(first, other=second), product(input=first, other=second)):
            assert torch.equal(found, expected)


class Own(torch.Tensor):
    """A tensor that says itself how it is multiplied."""

    @staticmethod
    def __new__(cls, held: object) -> object:
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    def __init__(self, held: object) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function: Callable, types: object, given: tuple, named: dict | None = None) -> object:
        if function not in (torch.ops.aten.mm.default, torch.ops.aten.t.default, torch.ops.aten.detach.default):
            raise NotImplementedError(function)
        held = [one.held if isinstance(one, cls) else one for one in given]
        found = function(*held, **(named or {}))
        return cls(found) if function is torch.ops.aten.t.default else found


BIASES = [
    torch.ones(()).bfloat16(),
    torch.ones(1).bfloat16(),
    torch.arange(16 * 8).reshape(16, 8).bfloat16(),
    torch.ones(8),
    torch.ones(9).bfloat16(),
]


@pytest.mark.parametrize("bias", BIASES, ids=["a number", "one", "of each row", "float32", "too long"])
def test_an_unusual_bias_is_what_it_is_to_torch(bias: object) -> None:
    given, weight = numbers(16, 4, seed=1), numbers(8, 4, seed=2)
    assert_as_torch(torch.nn.functional.linear, arithmetic.linear_in_float32, given, weight, bias)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (numbers(16, 6, seed=1), numbers(6, 8, seed=2).mT),
        (numbers(2, 16, 4, seed=1), numbers(3, 4, 4, seed=2)),
        (numbers(16, 4, seed=1), numbers(8, 4, seed=2).to_sparse()),
        (numbers(16, 4, seed=1), Own(numbers(4, 8, seed=2))),
    ],
    ids=["other inputs", "other matrices", "sparse", "of another kind"],
)
def test_what_torch_refuses_or_has_another_way_for_is_torchs(first: object, second: object) -> None:
    assert_as_torch(torch.matmul, arithmetic.matmul_in_float32, first, second)
    if second.ndim == 2:
        assert_as_torch(torch.nn.functional.linear, arithmetic.linear_in_float32, first, second.t())


def assert_as_torch(own: Callable, changed: Callable, *given: object) -> None:
    """Hold a changed product against torch's own: what it gives, or that it raises."""
    with torch.inference_mode():
        try:
            expected = own(*given)
        except RuntimeError as error:
            with pytest.raises(type(error)):
                changed(own)(*given)
        else:
            found = changed(own)(*given)
            assert (type(found), found.dtype) == (type(expected), expected.dtype)
            torch.testing.assert_close(found, expected, **NEAR)


def test_a_default_device_and_a_cast_are_obeyed_as_by_torch() -> None:
    given, weight = numbers(16, 4, seed=1), numbers(8, 4, seed=2)
    linear, matmul = (
        arithmetic.linear_in_float32(torch.nn.functional.linear),
        arithmetic.matmul_in_float32(torch.matmul),
    )
    with torch.inference_mode():
        with torch.device("meta"):
            assert linear(given, weight).device == given.device
            assert matmul(given, weight.t()).device == given.device
        with torch.autocast("cpu", torch.float16):
            assert linear(given, weight).dtype is torch.float16
            assert matmul(given, weight.t()).dtype is torch.float16


def test_a_gradient_is_torchs_own() -> None:
    called: list[object] = []
    weight = torch.nn.Parameter(numbers(8, 8, seed=1))
    arithmetic.linear_in_float32(counting(torch.nn.functional.linear, called))(
        numbers(16, 8, seed=2), weight
    ).sum().backward()
    assert called == [torch.bfloat16]
    assert weight.grad is not None


def test_a_layer_is_traced_as_it_was() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: object, y: object) -> object:
            return arithmetic.matmul_in_float32(torch.matmul)(
                x, arithmetic.linear_in_float32(torch.nn.functional.linear)(x, y)
            )

    traced = torch.fx.symbolic_trace(Layer())
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [
        torch.nn.functional.linear,
        torch.matmul,
    ]


@pytest.mark.parametrize("has", [False, True])
def test_only_a_processor_without_bfloat16_multiplies_otherwise(has: bool) -> None:
    said = f"torch.ops.mkldnn._is_mkldnn_bf16_supported = lambda: {has}"
    done = subprocess.run([sys.executable, "-c", TOLD.format(said=said)], capture_output=True, text=True, check=True)
    changed, each, near = json.loads(done.stdout)
    assert changed is not has
    assert set(each) == {not has}
    assert near
