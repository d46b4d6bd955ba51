"""For the quantizer's worker in tests: the first tensor on a GPU is made without one."""

import torch

_zeros = torch.zeros


def _on_any_device(*arguments, device=None, **keywords):
    return _zeros(*arguments, **keywords)


torch.zeros = _on_any_device
