"""In vLLM's workers on a CPU: its matrix unit, its threads, and products of integers that it has no instruction for.

Without VNNI, which came with AVX-512, INT8 is multiplied by an instruction that cuts sums off at 16 bits: large weights
beside large activations come out a fifth too small, and nothing says so. For 4 bits vLLM has no kernel there. Both are
computed in float then, from weights in bfloat16: that holds every integer of INT8, and what 4 bits stand for to a
rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Any

from runtime.engines.vllm.contract.table import seams

# Outputs that vLLM's kernel for 4 bits has together, input by input.
TOGETHER = 16
# Weights of 4 bits that are unpacked at a time: each is an integer of 32 bits meanwhile.
UNPACKED_AT_A_TIME = 1 << 20


def ask_for_matrix_unit() -> bool:
    """Ask Linux for the CPU's matrix unit (AMX), and return whether this process may use it.

    Linux ends a process that uses it unasked. vLLM's attention for CPUs does so wherever the CPU has the unit, unless
    a matrix product in bfloat16 or a compiled kernel came before, whose libraries ask.
    """
    import torch

    ask = getattr(torch.cpu, "_init_amx", None)
    return bool(ask and ask())


def say_threads(count: int) -> None:
    """Have torch compute with so many threads. It starts some of another pool at that, which vLLM does not use."""
    import torch

    torch.set_num_threads(count)


def start_threads(count: int) -> None:
    """Start so many threads that compute, by having them compute something."""
    import torch

    torch.zeros(count << 20).add_(1)


def flatten_rows() -> None:
    """Let vLLM's INT8 product for CPUs with AMX take a batch of sequences, as its other products do.

    Models whose layers vLLM has from transformers give it three dimensions, and the kernel takes two.
    """
    try:
        from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel as Kernel

        own = Kernel._apply_weights_sgl
    except (ImportError, AttributeError) as error:
        seams.give_up("rows of INT8", repr(error))
        return

    def apply(kernel: Any, layer: Any, x: Any, bias: Any = None) -> Any:  # noqa: ANN401 - vLLM is untyped to us
        rows = own(kernel, layer, x.reshape(-1, x.shape[-1]), bias)
        return rows.reshape(*x.shape[:-1], rows.shape[-1])

    Kernel._apply_weights_sgl = apply


def multiply_integers_in_float() -> None:
    """Have vLLM multiply integers of INT8 and of 4 bits in float, where this CPU does it wrongly, or not at all."""
    try:
        import torch
        from vllm import _custom_ops as ops

        create, multiply = ops.create_onednn_scaled_mm, ops.onednn_scaled_mm
        ops.create_onednn_scaled_mm = int8_weights(create, multiply)
        ops.onednn_scaled_mm = int8_product(multiply)
        if not hasattr(torch.ops._C, ops.cpu_gemm_wna16.__name__):
            ops.cpu_gemm_wna16 = four_bits_in_float
    except (ImportError, AttributeError) as error:
        seams.give_up("integers on a CPU", repr(error))


def int8_is_right(create: Any, multiply: Any) -> bool:  # noqa: ANN401 - vLLM is untyped to us
    """Tell whether the largest integers of INT8 are multiplied rightly here, to a hundredth: it is tried.

    Args:
        create: vLLM's making of a handle of a layer's weights.
        multiply: its product.
    """
    import torch

    largest = 127
    # Of one row and of many, which oneDNN may have different kernels for.
    for rows, inputs, outputs in ((1, 64, 32), (16, 512, 64)):
        weight, given = (torch.full((count, inputs), largest, dtype=torch.int8) for count in (outputs, rows))
        # In float32, which is not torch's default while vLLM loads a model. The handle points to what it is made from.
        scales, scale = (torch.ones(count, 1, dtype=torch.float32) for count in (outputs, rows))
        product = torch.zeros(rows, outputs, dtype=torch.float32)
        handler = create(weight.t(), scales, product.dtype, True, False, rows)
        multiply(handler, given, product, scale, None, None, None)
        if not bool(((product / (inputs * largest**2) - 1).abs() < 0.01).all()):
            return False
    return True


@dataclass
class Int8InFloat:
    """Stands for vLLM's handle of a layer's INT8 weights.

    Attributes:
        weight: the integers, (outputs, inputs), in bfloat16.
        scales: of each output, or one for all, in float32.
        k: how many inputs it has, in vLLM's name for it.
        n: how many outputs.
    """

    weight: Any
    scales: Any
    k: int
    n: int


def int8_weights(create: Any, multiply: Any) -> Any:  # noqa: ANN401 - vLLM is untyped to us
    """Return what takes the place of `create`: weights in float where both are wrong, which the first layer finds."""
    import torch

    right = cache(partial(int8_is_right, create, multiply))

    @wraps(create)
    def weights(weight: Any, weight_scales: Any, *given: Any, **named: Any) -> Any:  # noqa: ANN401
        if right():
            return create(weight, weight_scales, *given, **named)
        inputs, outputs = weight.shape
        integers = weight.t().to(torch.bfloat16).contiguous()
        return Int8InFloat(integers, weight_scales.float().reshape(1, -1), inputs, outputs)

    return weights


def int8_product(multiply: Any) -> Any:  # noqa: ANN401 - vLLM is untyped to us
    """Return what takes the place of `multiply`: of rows in INT8 by a layer's weights, put into `output`."""
    import torch

    @wraps(multiply)
    def product(handler: Any, x: Any, output: Any, scale: Any, zero: Any, beside: Any, bias: Any) -> Any:  # noqa: ANN401
        if not isinstance(handler, Int8InFloat):
            return multiply(handler, x, output, scale, zero, beside, bias)
        rows = x.to(torch.bfloat16)
        if zero is not None:
            # Rows that do not lie around zero. Their integers are moved before they are multiplied, to 255 at most,
            # which bfloat16 holds: the product is rounded, and of two large ones that nearly cancel little would be
            # left. So nobody needs `beside`, what a row of ones gives.
            rows = (rows - zero).to(torch.bfloat16)
        result = torch.nn.functional.linear(rows, handler.weight).float() * handler.scales
        result *= scale
        return output.copy_(result if bias is None else result + bias)

    return product


def four_bits_in_float(
    input: Any,  # noqa: ANN401 - vLLM is untyped to us, and these are its names
    q_weight: Any,  # noqa: ANN401
    scales: Any,  # noqa: ANN401
    zeros: Any,  # noqa: ANN401
    *,
    g_idx: Any = None,  # noqa: ANN401
    bias: Any = None,  # noqa: ANN401
    **others: object,
) -> Any:  # noqa: ANN401
    """Return rows by weights in 4 bits; the weights are unpacked at their first use, and those that were packed let go.

    Args:
        input: (rows, inputs), or more dimensions before.
        q_weight: (outputs / 16, inputs * 2) of int32, as vLLM's kernel has them: sixteen outputs, input by input.
        scales: (groups, outputs).
        zeros: (groups, outputs / 8) of int32; none where 8 is zero.
        g_idx: each input's group; none where they are in order.
        bias: (outputs).
        others: what only the kernel needs.
    """
    import torch

    weight = getattr(q_weight, "in_float", None)
    if weight is None:
        weight = q_weight.in_float = unpacked(q_weight, scales, zeros, g_idx, input.dtype)
        storage = q_weight.untyped_storage()
        if storage.nbytes() == q_weight.nbytes:  # nobody else's
            storage.resize_(0)  # never read again; its shape is
    return torch.nn.functional.linear(input, weight, bias)


def unpacked(q_weight: Any, scales: Any, zeros: Any, g_idx: Any, dtype: Any) -> Any:  # noqa: ANN401 - vLLM is untyped to us
    """Return weights in 4 bits, packed as `four_bits_in_float` has them: (outputs, inputs)."""
    import torch

    def integers(packed: Any) -> Any:  # noqa: ANN401
        return (packed.unsqueeze(-1) >> (4 * torch.arange(8, dtype=torch.int32))) & 15

    groups, outputs = scales.shape
    inputs = q_weight.numel() * 8 // outputs
    zero = torch.full((groups, outputs), 8) if zeros is None else integers(zeros).reshape(groups, outputs)
    group = torch.arange(inputs) // (inputs // groups) if g_idx is None else g_idx.long()
    weight = torch.empty(outputs, inputs, dtype=dtype)
    packed = q_weight.reshape(outputs // TOGETHER, inputs, 2)
    at_a_time = max(1, UNPACKED_AT_A_TIME // (TOGETHER * inputs))
    for begin in range(0, len(packed), at_a_time):
        some = integers(packed[begin : begin + at_a_time]).reshape(-1, inputs, TOGETHER).transpose(1, 2)
        some = some.reshape(-1, inputs).float()
        place = slice(begin * TOGETHER, begin * TOGETHER + len(some))
        some -= zero[:, place].float().t()[:, group]
        weight[place] = some.mul_(scales[:, place].float().t()[:, group])
    return weight
