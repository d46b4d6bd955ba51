"""In vLLM's workers on a CPU: its matrix unit, and its threads."""

from __future__ import annotations

from typing import Any

from runtime.engines.vllm.contract.table import seams


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
