"""A model's JSON files, as the newer generation of transformers writes them, in the older one's words.

TensorRT-LLM's lane has transformers 4; repositories are saved by 5 by now. What 4 does not know it skips without a
word: it would compute with a `rope_theta` of its own, and with a begin token more than the model learned with.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from runtime.artifact.files.opening import ArtifactError

TOKENIZER, MODEL = "tokenizer_config.json", "config.json"
NEWER = 5

NEWER_CLASSES = frozenset({"TokenizersBackend", "PythonBackend", "SentencePieceBackend", "MistralCommonBackend"})
EXTRA = "extra_special_tokens"

ROPE = "rope_parameters"
# Families whose layers rotate differently, and the older names for how fast they do.
LAYER_KINDS = ("full_attention", "sliding_attention")
PER_LAYER = {
    "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "gemma3n_text": ("rope_theta", "rope_local_base_freq"),
    "modernbert": ("global_rope_theta", "local_rope_theta"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
    "olmo3": ("rope_theta", "rope_theta"),
}
# And those with other names for it.
OTHER_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
}


# How 5 writes the numbers that JSON has no words for: an object with this one key.
FLOAT_KEY = "__float__"
FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain_float(part: dict[str, object]) -> object:
    """What an object of a `config.json` says: a number where 5 wrote one so, else itself; `json.loads`' `object_hook`.

    >>> plain_float({"__float__": "-Infinity"}), plain_float({"__float__": "1.5"})
    (-inf, {'__float__': '1.5'})
    """
    tag = part.get(FLOAT_KEY) if len(part) == 1 else None
    return FLOATS.get(tag, part) if isinstance(tag, str) else part


def installed_is_older() -> bool:
    """Whether the transformers that is installed is of the older generation."""
    from transformers import __version__ as version

    return int(version.partition(".")[0]) < NEWER


def saved_by_newer(tokenizer: Mapping[str, object]) -> bool:
    """Whether a `tokenizer_config.json` is one that transformers 5 wrote, and 4 reads differently or not at all.

    It names classes that 4 does not have, lists what 4 wants named, and leaves to `tokenizer.json` what classes of 4
    add by themselves, such as a begin token.
    """
    return (
        "backend" in tokenizer
        or isinstance(tokenizer.get(EXTRA), list)
        or tokenizer.get("tokenizer_class") in NEWER_CLASSES
    )


def older_tokenizer(tokenizer: Mapping[str, object]) -> dict[str, object]:
    """What a `tokenizer_config.json` says, in transformers 4's words: `tokenizer.json` is loaded as it is."""
    told = dict(tokenizer)
    if not saved_by_newer(tokenizer):
        return told
    told.pop("backend", None)
    told["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(told.get(EXTRA), list):
        told["additional_special_tokens"] = told[EXTRA]
        told[EXTRA] = {}
    return told


def older_model(config: Mapping[str, object]) -> dict[str, object]:
    """What a `config.json` says, in transformers 4's words.

    Raises:
        ArtifactError: 4 has no words for how its layers rotate.
    """
    told = {
        name: older_model(part) if name.endswith("_config") and isinstance(part, Mapping) else _plain(part)
        for name, part in config.items()
    }
    rope = told.pop(ROPE, None)
    if not isinstance(rope, Mapping) or not rope:
        return told
    family = str(config.get("model_type", ""))
    if set(rope) & set(LAYER_KINDS):
        return told | _per_layer(rope, family)
    names = OTHER_NAMES.get(family, {})
    found = {names.get(name, name): rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    scaling = _scaling(rope)
    if scaling is not None and scaling.get("rope_type") == "longrope":
        # Phi's: three fields, and the positions that it learned with beside them.
        found |= {name: value for name, value in scaling.items() if name == "original_max_position_embeddings"}
        scaling = {"type": "longrope", **{name: scaling.get(name) for name in ("short_factor", "long_factor")}}
    return told | found | {"rope_scaling": scaling}


def _plain(part: object) -> object:
    if isinstance(part, list):
        return [_plain(value) for value in part]
    return plain_float({name: _plain(value) for name, value in part.items()}) if isinstance(part, dict) else part


def _per_layer(rope: Mapping[str, object], family: str) -> dict[str, object]:
    kinds = {kind: part for kind in LAYER_KINDS if isinstance(part := rope.get(kind), Mapping)}
    scalings = {kind: _scaling(part) for kind, part in kinds.items()}
    names = dict(zip(LAYER_KINDS, PER_LAYER.get(family, ()), strict=False))
    speeds = {(names.get(kind), part.get("rope_theta")) for kind, part in kinds.items()}
    found = {name: speed for name, speed in speeds if name is not None and speed is not None}
    if len(found) < len(speeds) or scalings.get("sliding_attention") is not None:
        raise ArtifactError(
            f"expected layers that rotate as transformers 4 knows, found {family or 'a model'} with {ROPE} for each "
            "kind of layer; build it for another lane"
        )
    return found | {"rope_scaling": scalings.get("full_attention")}


def _scaling(rope: Mapping[str, object]) -> dict[str, object] | None:
    """What stretches the positions; none where nothing does."""
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        return None
    return {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}


def write_for_older(folder: Path) -> None:
    """Rewrite the JSON files in a folder of ours so that transformers 4 reads what 5 wrote.

    Raises:
        ArtifactError: 4 has no words for it.
    """
    for name, told in _rewritten(folder).items():
        (folder / name).unlink()  # it may be a link
        (folder / name).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[Path]:
    """A folder that the installed transformers reads rightly: this one, or one of links to it for a while.

    Raises:
        ArtifactError: it has no words for what the folder says.
    """
    if not installed_is_older() or not _rewritten(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="yap-model-") as place:
        links = Path(place) / "model"
        links.mkdir()
        for path in folder.resolve().iterdir():
            (links / path.name).symlink_to(path)
        write_for_older(links)
        yield links


def _rewritten(folder: Path) -> dict[str, dict[str, object]]:
    """The files of a folder that 4 would misread, as it wants them."""
    found = {}
    for name, older in ((TOKENIZER, older_tokenizer), (MODEL, older_model)):
        try:
            document = json.loads((folder / name).read_bytes())
        except (OSError, ValueError):
            continue  # whoever loads it tells what is wrong
        if isinstance(document, Mapping) and (told := older(document)) != document:
            found[name] = told
    return found
