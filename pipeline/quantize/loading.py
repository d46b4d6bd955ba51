"""The worker's loading of a float model: the class that its config names, whole, and with its experts apart.

The quantizers see a folder of links. It lacks what must not decide anything: code that comes with a model, and a
generation config, which is copied from the source in the end and may be invalid.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint.config_reader import architectures, read_object
from pipeline.checkpoint.float_layers import FloatRule
from pipeline.quantize.job import QuantizeJob
from pipeline.quantize.trt_source import link_files
from pipeline.stages.stage import StageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

EXPERTS = "expert"
NOT_SHOWN = frozenset({"generation_config.json"})


@contextlib.contextmanager
def plain_folder(model: Path, link: Callable[[Path, Path], None] = link_files) -> Iterator[Path]:
    """Make a folder of links to a model's files, without code and without its generation config."""
    with tempfile.TemporaryDirectory(prefix="yap-model-") as place:
        folder = Path(place, "model")
        link(model, folder)
        for name in NOT_SHOWN:
            (folder / name).unlink(missing_ok=True)
        yield folder


def forget_broken_modules() -> None:
    """Take out of `sys.modules` those modules of transformers that cannot list their names.

    Loading a mixture of experts walks over all of them by `dir`, and some import torchvision for it, which has no build
    for the CPU's PyTorch. What is taken out is imported again by whoever asks for it.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers") and module is not None:
            try:
                dir(module)
            except ImportError:
                del sys.modules[name]


def class_of(folder: Path) -> Any:  # noqa: ANN401 - a class of transformers'
    """Return the class that loads a model: the one that its config names, where transformers has it.

    Raises:
        StageError: transformers knows no such model.
    """
    import transformers

    named = architectures(read_object(folder / "config.json"))
    for name in named:
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    found = f"{', '.join(named) or 'no architecture'} ({config.model_type})"
    what = f"expected an architecture that transformers {transformers.__version__} has, found {found}"
    raise StageError("quantize", what, folder, "choose another model")


def float_linears(model: PreTrainedModel, job: QuantizeJob) -> dict[str, str]:
    """Return the linear layers that stay in float, with the reason: those of the plan, and those that never are."""
    rule = FloatRule.of(model.config.to_dict(), (name for name, _ in model.named_modules()))
    reasons: dict[str, str] = {}
    for name, layer in linears(model).items():
        if job.keeps(name):
            reasons[name] = "as planned"
        elif reason := rule.why(name, tuple(layer.weight.shape)):
            reasons[name] = reason
    return reasons


def linears(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """Return the linear layers of a model by name."""
    import torch

    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def check(model: PreTrainedModel, job: QuantizeJob, kept: Collection[str], *, apart: bool = True) -> None:
    """Check a loaded model before hours of work: something to quantize, experts apart, groups that fit every layer.

    Args:
        model: as loaded.
        job: what will be done.
        kept: names of the linear layers that stay in float.
        apart: whether the quantizer needs a matrix for each expert.

    Raises:
        StageError: it cannot be quantized as planned.
    """
    layers = {name: layer for name, layer in linears(model).items() if name not in kept}
    if not layers:
        kinds = sorted({type(module).__name__ for module in model.modules() if hasattr(module, "weight")})
        what = f"expected linear layers in the decoder of {type(model).__name__}, found none among {', '.join(kinds)}"
        raise StageError("quantize", what, job.model, "use none, which leaves it in float")
    for name, parameter in model.named_parameters() if apart else ():
        if parameter.ndim == 3 and 1 not in parameter.shape and EXPERTS in name:
            what = f"expected experts that can be taken apart, found {name} with the shape {tuple(parameter.shape)}"
            raise StageError("quantize", what, job.model, "use none, which leaves it in float")
    if job.group_size:
        odd = {name: layer.in_features for name, layer in layers.items() if layer.in_features % job.group_size}
        if odd:
            name, width = next(iter(odd.items()))
            what = f"expected inputs that {job.group_size} divides, found {width} in {name} and {len(odd) - 1} others"
            raise StageError("quantize", what, job.model, "use an 8-bit method")
