"""The worker's look at the weights that were loaded: transformers makes up those that a model's files lack.

It says so in a warning and goes on; a model that is random in one layer is quantized, measured and served like any
other. So whatever loads one here asks what was missing, of another shape or left over, and looks at every number.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint.config_reader import shown
from pipeline.checkpoint.float_layers import is_tower
from pipeline.checkpoint.layers import DRAFT
from pipeline.stages.stage import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHOWN = 3
AGAIN = "fetch it again, or choose another model"
CORRECT = "correct its config.json, or choose another model"
_LAYER = re.compile(r"^(?:.*?\.)?(?:layers|h|blocks?|decoder_layers)\.\d+\.")


@contextlib.contextmanager
def required(model: Path) -> Iterator[None]:
    """Have every model that transformers loads meanwhile refused unless its files hold all of its weights.

    Quantizers load through their own functions, which take no word on it; what they end in is one method.

    Args:
        model: the folder, for the error.

    Raises:
        StageError: weights are missing, of another shape, left over or no numbers; or the model cannot be loaded.
    """
    import transformers

    base = transformers.PreTrainedModel
    original = base.__dict__["from_pretrained"]

    def from_pretrained(cls: Any, /, *args: Any, output_loading_info: bool = False, **more: Any) -> Any:  # noqa: ANN401
        # Those of another shape are then told by their names; else transformers raises, and tells them in its log.
        more["ignore_mismatched_sizes"] = True
        loaded, info = _loaded(model, cls, lambda: original.__func__(cls, *args, output_loading_info=True, **more))
        check(loaded, info, model)
        return (loaded, info) if output_loading_info else loaded

    base.from_pretrained = classmethod(from_pretrained)
    try:
        yield
    finally:
        base.from_pretrained = original


def check(loaded: PreTrainedModel, info: Mapping[str, Collection[Any]], model: Path) -> None:
    """Check what transformers tells of a model that it loaded.

    Args:
        loaded: the model.
        info: what `from_pretrained` tells with `output_loading_info`; tied weights are not missing there, nor are those
            that the model's class does without.
        model: its folder, for the error.

    Raises:
        StageError: weights are missing, of another shape, left over or no numbers.
    """
    other = sorted((str(name), tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"])
    if other:
        name, found, wanted = other[0]
        more = f", and {len(other) - 1} others of another shape" if len(other) > 1 else ""
        what = f"expected {wanted} as the shape of {name}, found {found}{more}"
        raise StageError("quantize", what, model, CORRECT)
    # Towers are not served.
    if missing := [name for name in info["missing_keys"] if not is_tower(name)]:
        what = f"expected all weights of {type(loaded).__name__}, found none for {_some(missing)}"
        raise StageError("quantize", what, model, AGAIN)
    if beyond := _layers_beyond(loaded, info["unexpected_keys"]):
        what = f"expected the layers that its config.json counts, found {_some(beyond)} besides"
        raise StageError("quantize", what, model, CORRECT)
    if odd := [name for name, tensor in loaded.named_parameters() if not _is_finite(tensor)]:
        raise StageError("quantize", f"expected numbers as weights, found others in {_some(odd)}", model, AGAIN)


def _loaded(model: Path, kind: type, load: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Load a model; what transformers raises on the way becomes one line."""
    import torch
    import transformers

    try:
        return load()
    except (StageError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        expected = f"a model that transformers {transformers.__version__} loads as {kind.__name__}"
        found = shown(f"{type(error).__name__}: {told}", longest=300)[1:-1]
        raise StageError("quantize", f"expected {expected}, found {found}", model, CORRECT) from error


def _layers_beyond(loaded: PreTrainedModel, left_over: Collection[str]) -> list[str]:
    """Return the weights of whole layers that the model does not have; what predicts further tokens is left out."""
    held = {found[0] for name, _ in loaded.named_parameters() if (found := _LAYER.match(name))}
    containers = {place.rpartition(".")[0].rpartition(".")[0] for place in held}
    layers: dict[str, list[str]] = {}
    for name in left_over:
        found = _LAYER.match(name)
        if found and found[0] not in held and found[0].rpartition(".")[0].rpartition(".")[0] in containers:
            layers.setdefault(found[0], []).append(name)
    plain = (names for names in layers.values() if not any(DRAFT.search(name) or is_tower(name) for name in names))
    return [name for names in plain for name in names]


def _is_finite(tensor: Any) -> bool:  # noqa: ANN401 - torch's
    """Whether all of a tensor are numbers, told without a copy of it; what lies on no device yet is not looked at."""
    import torch

    if tensor.device.type == "meta" or not tensor.is_floating_point() or not tensor.numel():
        return True
    least, most = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(least) & torch.isfinite(most))


def _some(names: Collection[str]) -> str:
    """Word the first few names, and how many there are beside them."""
    ordered = sorted(names)
    rest = len(ordered) - SHOWN
    return ", ".join(ordered[:SHOWN]) + (f" and {rest} others" if rest > 0 else "")
