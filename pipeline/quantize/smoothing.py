"""Where scales can move between layers without changing what a model computes, found by trying it on the model.

AWQ and SmoothQuant divide the output of one layer by a scale for each channel, and multiply the inputs of the layers
that read it. That is only sound where those are all that read it. llm-compressor has lists of such places by
architecture; many have none there, and some are wrong (Gemma's post-attention norm is not what its feed-forward block
reads). So a short text runs through the model once, which tells what reads a norm's output, and which matrices follow
one another. Each kind of place is then tried in its layer: by powers of two, nothing may change but by rounding.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

# Tokens of the text that is tried: enough that no path of a layer is idle.
TOKENS = 32
# Part of what a layer adds that may change. With scales that are powers of two only sums in another order differ.
TOLERANCE = 1e-2

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Smoothing:
    """A place where scales can move.

    Attributes:
        smooth: the layer whose output is divided.
        balance: the layers that read it, whose inputs are multiplied; the first of them sees all of it.
        after_norm: whether the output is a norm's.
    """

    smooth: str
    balance: tuple[str, ...]
    after_norm: bool = False

    @property
    def suits_smoothquant(self) -> bool:
        """Whether SmoothQuant gains there: after a norm, and not before experts, which one scale for all would harm."""
        return self.after_norm and not any(".experts." in name for name in self.balance)

    @property
    def kind(self) -> tuple[str, tuple[str, ...]]:
        """The place without its numbers: the same for each layer that is built alike."""
        return _NUMBER.sub("#", self.smooth), tuple(sorted({_NUMBER.sub("#", name) for name in self.balance}))


@dataclass(slots=True)
class _Layer:
    """What is seen of one decoder layer while a text runs through it."""

    name: str
    module: torch.nn.Module
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    norms: list[tuple[str, Tensor]] = field(default_factory=list)
    reads: list[tuple[str, Tensor]] = field(default_factory=list)


def find(model: PreTrainedModel, samples: Sequence[Sequence[int]], quantized: Iterable[str]) -> tuple[Smoothing, ...]:
    """Find the places in a model where scales can move.

    Args:
        model: in float, on the CPU.
        samples: token ids, of which the beginning of the longest is tried.
        quantized: names of the layers that will be quantized; a place without one of them is of no use.
    """
    import torch
    from llmcompressor.modeling.moe.context import moe_calibration_context
    from llmcompressor.modeling.offset_norm import norm_calibration_context

    text = max(samples, key=len)[:TOKENS]
    wanted = set(quantized)
    places: list[Smoothing] = []
    verdicts: dict[tuple[str, tuple[str, ...]], bool] = {}
    with torch.no_grad(), norm_calibration_context(model), moe_calibration_context():
        for layer in _watch(model, text):
            for candidates in _candidates(model, layer):
                for place in candidates:
                    if not wanted.intersection(place.balance):
                        continue
                    if place.kind not in verdicts:
                        verdicts[place.kind] = _holds(model, layer, place)
                    if verdicts[place.kind]:
                        places.append(place)
                        break
    return tuple(places)


def _watch(model: PreTrainedModel, text: Sequence[int]) -> list[_Layer]:
    """Run a text through the model, and return what each decoder layer did."""
    import torch

    layers = [_Layer(name, module) for name, module in _decoder_layers(model)]
    handles = []
    for layer in layers:
        handles.append(layer.module.register_forward_pre_hook(_keep_call(layer), with_kwargs=True))
        for name, module in layer.module.named_modules(prefix=layer.name):
            weight = getattr(module, "weight", None)
            if not isinstance(weight, torch.Tensor):
                continue
            if weight.ndim == 1:
                handles.append(module.register_forward_hook(_keep_output(layer, name, weight.numel())))
            elif weight.ndim == 2:
                handles.append(module.register_forward_hook(_keep_input(layer, name, weight.shape[1])))
    try:
        model(input_ids=torch.tensor([list(text)], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [layer for layer in layers if layer.arguments or layer.keywords]


def _decoder_layers(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    import torch

    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            yield from ((f"{name}.{number}", child) for number, child in enumerate(module))


def _keep_call(layer: _Layer) -> Callable[..., None]:
    def hook(_: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        layer.arguments, layer.keywords = arguments, dict(keywords)

    return hook


def _keep_output(layer: _Layer, name: str, width: int) -> Callable[..., None]:
    def hook(_: torch.nn.Module, __: object, output: Any) -> None:  # noqa: ANN401 - a tensor or a tuple
        output = output[0] if isinstance(output, tuple) else output
        if output.shape[-1] == width:
            layer.norms.append((name, output))

    return hook


def _keep_input(layer: _Layer, name: str, width: int) -> Callable[..., None]:
    def hook(_: torch.nn.Module, arguments: tuple[Any, ...], __: object) -> None:
        if arguments and getattr(arguments[0], "shape", (0,))[-1] == width:
            layer.reads.append((name, arguments[0]))

    return hook


def _candidates(model: PreTrainedModel, layer: _Layer) -> Iterator[list[Smoothing]]:
    """Places that may hold in a layer; of each list the first that does is taken."""
    readers: dict[str, list[str]] = defaultdict(list)
    after_a_norm: set[str] = set()
    for norm, output in layer.norms:
        direct = [name for name, seen in layer.reads if seen.data_ptr() == output.data_ptr()]
        readers[norm] = list(dict.fromkeys(direct))
        after_a_norm.update(direct)
    pairs = list(_pairs(model, layer, after_a_norm))
    second = {name for group in pairs for place in group for name in place.balance}
    for norm, direct in readers.items():
        if not direct:
            continue
        width = model.get_submodule(norm).weight.shape[0]
        # Experts read rows that were picked out of the norm's output, so that nothing but a try tells.
        experts = [
            name
            for name, _ in layer.reads
            if ".experts." in name and name not in second and model.get_submodule(name).weight.shape[1] == width
        ]
        chosen = [Smoothing(norm, tuple(direct), after_norm=True)]
        if experts:
            chosen.insert(0, Smoothing(norm, tuple(dict.fromkeys([*direct, *experts])), after_norm=True))
        yield chosen
    yield from pairs


def _pairs(model: PreTrainedModel, layer: _Layer, after_a_norm: set[str]) -> Iterator[list[Smoothing]]:
    """Matrices beside each other, of which one may read what the other made."""
    inputs = dict(layer.reads)
    order = list(inputs)
    for place, name in enumerate(order):
        if name in after_a_norm:
            continue
        parent, width = name.rpartition(".")[0], model.get_submodule(name).weight.shape[1]
        before = [
            other
            for other in order[:place]
            if other.rpartition(".")[0] == parent and inputs[other].data_ptr() != inputs[name].data_ptr()
        ]
        yield [Smoothing(other, (name,)) for other in before if _fits(model.get_submodule(other), width)]


def _fits(module: Any, width: int) -> bool:  # noqa: ANN401 - any layer with a weight
    rows = module.weight.shape[0]
    return rows == width or (rows > width and getattr(module, "bias", None) is None)


def _holds(model: PreTrainedModel, layer: _Layer, place: Smoothing) -> bool:
    """Tell whether scales can move there, and whether the layer's output depends on them at all."""
    import torch

    smooth = model.get_submodule(place.smooth)
    balance = [model.get_submodule(name) for name in place.balance]
    width = balance[0].weight.shape[1]
    if any(module.weight.shape[1] != width for module in balance):
        return False
    scales = torch.where(torch.arange(width) % 2 == 0, 2.0, 0.5).to(smooth.weight)
    before = {module: (module.weight.detach().clone(), _bias(module)) for module in [smooth, *balance]}
    try:
        output = _run(layer)
        _divide(smooth, scales)
        alone = _run(layer)
        for module in balance:
            module.weight.data.mul_(scales.view(1, -1))
        moved = _run(layer)
    except RuntimeError:
        return False
    finally:
        for module, (weight, bias) in before.items():
            module.weight.data.copy_(weight)
            if bias is not None:
                module.bias.data.copy_(bias)
    least = torch.linalg.vector_norm(alone - output)
    return bool(least > 0 and torch.linalg.vector_norm(moved - output) <= TOLERANCE * least)


def _bias(module: Any) -> Tensor | None:  # noqa: ANN401 - any layer with a weight
    bias = getattr(module, "bias", None)
    return None if bias is None else bias.detach().clone()


def _divide(module: Any, scales: Tensor) -> None:  # noqa: ANN401 - any layer with a weight
    """Divide a layer's output, as llm-compressor does it: of a matrix with more rows the last ones."""
    if module.weight.ndim == 1:
        module.weight.data.div_(scales)
    else:
        module.weight.data[-len(scales) :].div_(scales.view(-1, 1))
    if getattr(module, "bias", None) is not None:
        module.bias.data.div_(scales)


def _run(layer: _Layer) -> Tensor:
    output = layer.module(*layer.arguments, **layer.keywords)
    return (output[0] if isinstance(output, tuple) else output).float()


def match_by_name(
    model: torch.nn.Module, targets: Iterable[str], *_: object, **__: object
) -> Iterator[list[list[Any]]]:
    """Stand in for llm-compressor's `match_modules_set`, which goes over all modules for each place: by exact name."""
    yield [[model.get_submodule(name)] for name in targets]
