"""What a loaded classifier says of itself: how many positions it has, what fills its batches, where its weights lie."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.artifact.generations import MODEL, installed_is_older, older_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def model_config(folder: Path) -> PretrainedConfig:
    """A classifier's config, whichever generation of transformers saved it.

    Raises:
        ArtifactError: the installed one has no words for it.
    """
    from transformers import AutoConfig

    if not installed_is_older():
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    told: dict[str, Any] = older_model(json.loads((folder / MODEL).read_bytes()))
    return AutoConfig.for_model(**told)


def detach_from_files(model: PreTrainedModel) -> None:
    """Have a model keep its weights in memory of its own: as they are loaded on a CPU, they are the file, mapped.

    Whoever wrote into that file later would change the answers, and whoever cut it off would end the process.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def require_whole(model: PreTrainedModel, told: Mapping[str, Collection[str]], folder: Path) -> None:
    """Refuse a model that transformers made weights up for: it would decide otherwise after every start.

    Buffers are no weights: those that files lack are computed, and many classes once stored what they no longer do.

    Args:
        model: as loaded.
        told: by `from_pretrained` with `output_loading_info`.
        folder: where it came from.

    Raises:
        ValueError: its files lack some.
    """
    weights = {name for name, _ in model.named_parameters()}
    missing = sorted(weights.intersection(told["missing_keys"]))
    if missing:
        some, rest = ", ".join(missing[:3]), len(missing) - 3
        raise ValueError(
            f"{folder}: expected all weights of {type(model).__name__}, found none for {some}"
            f"{f' and {rest} others' if rest > 0 else ''}; save it whole, or choose another classifier"
        )


def positions_of(model: PreTrainedModel, token: int) -> int | None:
    """Tokens for which a model has positions; none where it looks none up in a table.

    It is asked: the tables are those where a token, repeated, is looked up at rows that follow each other, and the
    first of them is where positions begin, whatever a family leaves free before it or calls the table.

    Args:
        token: an ordinary one, neither padding nor an end.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    found: list[int] = []

    def note(values: Iterable[object]) -> None:
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        rows = next((value for value in tensors if not value.is_floating_point()), None)
        table = next((value for value in tensors if value.is_floating_point()), None)
        if rows is None or table is None or not rows.dim() or rows.shape[-1] < len(probe):
            return
        first = rows.reshape(-1, rows.shape[-1])[:, : len(probe)]
        if bool((first.diff() == 1).all()):
            found.append(table.shape[0] - int(first[:, 0].max()))

    class Watch(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self,
            func: Callable[..., object],
            types: object,
            args: tuple[object, ...] = (),
            kwargs: Mapping[str, object] | None = None,
        ) -> object:
            named = kwargs or {}
            if func in (torch.nn.functional.embedding, torch.embedding):
                note((*args, *named.values()))
            return func(*args, **named)

    probe = [token] * 4
    ids = torch.tensor([probe], device=model.device)
    # A model that wants an end of the text fails past its tables, which is all that is asked of it here.
    with contextlib.suppress(IndexError, RuntimeError, ValueError), torch.inference_mode(), Watch():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return min(found, default=None)


def padding_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Token that fills a batch: the one by which the model itself tells padding from text.

    A decoder reads its answer at the last token that is not padding, and takes no batch where its config names none.
    Then one is named that no text ends with.

    Raises:
        ValueError: there is none.
    """
    text = model.config.get_text_config()
    size = model.get_input_embeddings().weight.shape[0]
    if isinstance(text.pad_token_id, int) and 0 <= text.pad_token_id < size:
        return int(text.pad_token_id)
    last = (tokenizer("hello")["input_ids"] or [None])[-1]
    named = [tokenizer.pad_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids]
    # An unknown word may be the last one of a text; a row behind the vocabulary never is.
    named = [token for token in [*named, len(tokenizer)] if token is not None and token != tokenizer.unk_token_id]
    pad: int | None = next((token for token in named if token != last and token < size), None)
    if pad is None:
        raise ValueError("expected a padding token, found none; set pad_token_id in its config.json")
    text.pad_token_id = model.config.pad_token_id = pad
    return pad


def ordinary_token(tokenizer: PreTrainedTokenizerBase, pad: int) -> int:
    """Return a token of ordinary text, or else the first that is not padding."""
    special = {pad, *tokenizer.all_special_ids}
    return next((token for token in tokenizer("hello")["input_ids"] if token not in special), 0 if pad else 1)
