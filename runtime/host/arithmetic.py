"""Products of matrices on a processor that has no arithmetic in bfloat16.

Such a processor (x86 without AVX-512) multiplies matrices in bfloat16 five to ten times slower than in float32: the
library beneath torch has no kernel for them, and torch's own computes one row after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from math import prod
from typing import Any

# With fewer rows torch's own product is as fast: it reads each weight once, and nothing is converted.
FEW_ROWS = 8
# Weights that are converted at a time: 4 MiB in float32, which a cache holds.
WEIGHTS_AT_A_TIME = 1 << 20
# Of two matrices that both come from somewhere else, such as keys and values: converted at once up to 16 MiB.
NUMBERS_AT_A_TIME = 1 << 22

MATMULS = ("matmul", "bmm", "mm")

Product = Callable[..., Any]


def multiply_in_float32() -> bool:
    """Have torch multiply in float32 what is stored in bfloat16, where this processor has no arithmetic for it.

    What comes out is the same: each product is rounded once, to bfloat16. Some of what is multiplied by is converted at
    a time, so hardly more memory is taken. Where gradients are wanted nothing changes, nor for tensors of other kinds.

    Returns:
        Whether it does so from now on, in this process.
    """
    import torch

    has = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if has is None or has():
        return False
    functional = torch.nn.functional
    functional.linear = linear_in_float32(functional.linear)
    for name in MATMULS:
        for place in (torch, torch.Tensor):
            setattr(place, name, matmul_in_float32(getattr(place, name)))
    torch.Tensor.__matmul__ = matmul_in_float32(torch.Tensor.__matmul__)
    return True


def linear_in_float32(own: Product) -> Product:
    """Return torch's `linear` as it is in float32 for what is stored in bfloat16; the rest is left to its own."""

    @wraps(own)
    def linear(input: Any, weight: Any, bias: Any = None) -> Any:  # noqa: ANN401 - torch is untyped to us
        ours = (
            _in_bfloat16(input, weight)
            and weight.ndim == 2
            and input.ndim > 0
            and input.shape[-1] == weight.shape[1]
            and input.numel() >= FEW_ROWS * input.shape[-1] > 0
            and (bias is None or (bias.dtype is input.dtype and bias.shape == weight.shape[:1]))
        )
        return _layer(input, weight, bias) if ours else own(input, weight, bias)

    return linear


def matmul_in_float32(own: Product) -> Product:
    """Return a product of torch's as it is in float32 for what is stored in bfloat16; the rest is left to its own."""

    @wraps(own)
    def matmul(*given: Any, **named: Any) -> Any:  # noqa: ANN401 - torch is untyped to us
        # Whoever names an argument, such as `out`, has torch's own.
        if named or len(given) != 2 or not _in_bfloat16(*given) or not _many_rows(*given):
            return own(*given, **named)
        first, second = given
        if second.numel() <= NUMBERS_AT_A_TIME and first.numel() <= NUMBERS_AT_A_TIME:
            return own(first.float(), second.float()).bfloat16()
        return _in_boxes(own, first, second)

    return matmul


def _in_bfloat16(first: Any, second: Any) -> bool:  # noqa: ANN401 - torch is untyped to us
    """Tell whether two tensors are multiplied faster in float32, given enough rows; whatever they are."""
    import torch

    # A compiler is asked first: it would take whatever else is asked for a property that it has to keep.
    return not torch.compiler.is_compiling() and (
        type(first) in (torch.Tensor, torch.nn.Parameter)
        and isinstance(second, torch.Tensor)
        # Not where a tensor says itself how it is multiplied.
        and type(second).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        and first.dtype is second.dtype is torch.bfloat16
        and all(one.is_cpu and one.layout is torch.strided and not one.is_nested for one in (first, second))
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(first.device.type)
    )


def _many_rows(first: Any, second: Any) -> bool:  # noqa: ANN401 - torch is untyped to us
    """Tell whether each matrix is multiplied by many rows; what torch refuses is left to it to refuse."""
    if first.ndim < 2 or second.ndim < 2 or first.shape[-1] != second.shape[-2] or not second.numel():
        return False
    rows = first.shape[-2] if second.ndim > 2 else first.numel() // first.shape[-1]
    same = zip(reversed(first.shape[:-2]), reversed(second.shape[:-2]), strict=False)
    return rows >= FEW_ROWS and all(one == other or 1 in (one, other) for one, other in same)


def _layer(given: Any, weight: Any, bias: Any) -> Any:  # noqa: ANN401 - torch is untyped to us
    """Return given rows, (…, inputs), by a weight, (outputs, inputs), and a bias, (outputs), as (…, outputs)."""
    import torch

    outputs, inputs = weight.shape
    rows = given.reshape(-1, inputs).float()
    product = torch.empty(rows.shape[0], outputs, dtype=torch.bfloat16, device=given.device)
    at_a_time = max(1, min(outputs, WEIGHTS_AT_A_TIME // inputs))
    part = torch.empty(at_a_time, inputs, dtype=torch.float32, device=given.device)
    for begin in range(0, outputs, at_a_time):
        end = min(outputs, begin + at_a_time)
        some = rows @ part[: end - begin].copy_(weight[begin:end]).t()
        product[:, begin:end] = some if bias is None else some.add_(bias[begin:end])
    return product.reshape(*given.shape[:-1], outputs)


def _in_boxes(own: Product, first: Any, second: Any) -> Any:  # noqa: ANN401 - torch is untyped to us
    """Return (…, rows, inputs) by (…, inputs, columns), some of the matrices, or of one's columns, at a time."""
    import torch

    *_, rows, inputs = first.shape
    columns = second.shape[-1]
    lead = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    product = torch.empty(*lead, rows, columns, dtype=torch.bfloat16, device=first.device)
    first, second = first.expand(*lead, rows, inputs), second.expand(*lead, inputs, columns)
    for box in boxes((*lead, columns), max(1, NUMBERS_AT_A_TIME // inputs)):
        matrices, some = box[:-1], (*box[:-1], slice(None), box[-1])
        product[some] = own(first[matrices].float(), second[some].float())
    return product


def boxes(sizes: Sequence[int], most: int) -> Iterator[tuple[slice, ...]]:
    """Cut a space up into boxes of at most so many places.

    >>> list(boxes((3, 4), 8))
    [(slice(0, 2, None), slice(0, 4, None)), (slice(2, 3, None), slice(0, 4, None))]
    >>> list(boxes((1, 4), 3))
    [(slice(0, 1, None), slice(0, 3, None)), (slice(0, 1, None), slice(3, 4, None))]
    """
    size, *others = sizes
    inside = prod(others)
    step = max(1, min(size, most // max(1, inside)))
    for begin in range(0, size, step):
        part = slice(begin, min(size, begin + step))
        if inside <= most:
            yield (part, *(slice(0, other) for other in others))
        else:
            yield from ((part, *deeper) for deeper in boxes(others, most))
