"""Products of matrices on a processor that has no arithmetic in bfloat16.

Such a processor (x86 without AVX-512) multiplies matrices in bfloat16 five to ten times slower than in float32: the
library beneath torch has no kernel for them, and torch's own computes one row after another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

# With fewer rows torch's own product is as fast: it reads each weight once, and nothing is converted.
FEW_ROWS = 8
# Weights that are converted at a time: 4 MiB in float32, which a cache holds.
WEIGHTS_AT_A_TIME = 1 << 20

MATMULS = ("matmul", "bmm", "mm")

Product = Callable[..., Any]


def multiply_in_float32() -> bool:
    """Have torch multiply in float32 what is stored in bfloat16, where this processor has no arithmetic for it.

    What comes out is the same: each product is rounded once, to bfloat16. Of weights some are converted at a time, so
    no more memory is taken. Where gradients are wanted nothing changes.

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
        if not _many_rows(input, weight) or weight.ndim != 2:
            return own(input, weight, bias)
        return _product(input, weight, bias)

    return linear


def matmul_in_float32(own: Product) -> Product:
    """Return a product of torch's as it is in float32 for what is stored in bfloat16; the rest is left to its own."""

    @wraps(own)
    def matmul(*given: Any, **named: Any) -> Any:  # noqa: ANN401 - torch is untyped to us
        # Whoever names an argument, such as `out`, has torch's own.
        if named or len(given) != 2 or not _many_rows(*given) or min(one.ndim for one in given) < 2:
            return own(*given, **named)
        first, second = given
        return own(first.float(), second.float()).bfloat16()

    return matmul


def _many_rows(rows: Any, others: Any) -> bool:  # noqa: ANN401 - torch is untyped to us
    """Tell whether two tensors are multiplied faster in float32; whatever they are, traced ones too."""
    import torch

    return (
        getattr(rows, "dtype", None) is torch.bfloat16
        and getattr(others, "dtype", None) is torch.bfloat16
        and rows.is_cpu
        and others.is_cpu
        and rows.ndim > 0
        and rows.numel() >= FEW_ROWS * rows.shape[-1] > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _product(given: Any, weight: Any, bias: Any) -> Any:  # noqa: ANN401 - torch is untyped to us
    """Return given rows, (…, inputs), by a weight, (outputs, inputs), and a bias, (outputs), as (…, outputs)."""
    import torch

    outputs, inputs = weight.shape
    rows = given.reshape(-1, inputs).float()
    product = torch.empty(rows.shape[0], outputs, dtype=torch.bfloat16)
    at_a_time = max(1, min(outputs, WEIGHTS_AT_A_TIME // inputs))
    part = torch.empty(at_a_time, inputs, dtype=torch.float32)
    for begin in range(0, outputs, at_a_time):
        end = min(outputs, begin + at_a_time)
        some = rows @ part[: end - begin].copy_(weight[begin:end]).t()
        product[:, begin:end] = some if bias is None else some.add_(bias[begin:end])
    return product.reshape(*given.shape[:-1], outputs)
