"""The facts about a model before it is fetched, and those about the embedded ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.checkpoint.config_reader import architectures
from pipeline.checkpoint.tensors import INDEX_SUFFIX, Tensor, chosen_weights
from pipeline.problem import Problem
from pipeline.source.model_files import CHECKPOINTS

Kind = Literal["embedded", "folder", "hub"]

EMBEDDED = "embedded"

# What decides a model's answers; cards and pictures do not.
CONTENT_SUFFIXES = (".safetensors", ".engine", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
CARD_NAMES = ("README.md", "LICENSE")
TEMPLATES = "additional_chat_templates"

# The embedded models' own configs, so that a plan can be made before they are exported; tests hold them equal.
EMBEDDED_CHAT: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
EMBEDDED_TOOL: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "trained_window": 48,
    "id2label": {"0": "no", "1": "take_screenshot"},
    "label2id": {"no": 0, "take_screenshot": 1},
}


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """The facts about a model before it is fetched.

    Attributes:
        ref: as the user named it.
        kind: where it comes from.
        name: what the metadata calls it: hub id, `embedded`, or the folder's name.
        path: the folder, where it is already here.
        revision: commit on the hub; none for all others.
        config: `config.json`; empty when it could not be read, in which case `problems` says why.
        checkpoint: `config.json` of the TensorRT-LLM checkpoint that it is or holds; empty for all others.
        sizes: bytes of each file by relative path; empty for embedded models.
        weights: the files that hold its weights, each weight once; none leaves it to the names in `sizes`.
        tensors: what these hold, as their headers say; empty where these were not read.
        unread: why the headers were not read; none where they were, and for embedded models.
        hashes: SHA-256 of the large files on the hub; empty for all others.
        license: as its card names it; none where it does not.
        license_name: of a licence that the card calls `other`.
        license_link: to that one's text.
        chat_template: whether one comes with it.
        problems: everything that is wrong with it.
        thinks: whether it thinks before each reply, and cannot be told not to.
        thought_off: the chat template's variables that keep it from thinking.
    """

    ref: str
    kind: Kind
    name: str
    path: Path | None = None
    revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    weights: tuple[str, ...] | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    unread: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    chat_template: bool = False
    problems: tuple[Problem, ...] = ()
    thinks: bool = False
    thought_off: tuple[str, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """The size in bytes of the weights."""
        return sum(self.sizes.get(name, 0) for name in self.weight_files)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """The files that hold its weights, each weight once."""
        return chosen_weights(self.sizes, None) if self.weights is None else self.weights

    @property
    def wanted(self) -> tuple[str, ...]:
        """The files that are fetched: the weights once, and what decides the model's answers beside them."""
        return tuple(name for name in self.sizes if is_content(name, self.weight_files) or self._is_checkpoint(name))

    def _is_checkpoint(self, name: str) -> bool:
        return bool(self.checkpoint) and name.startswith(f"{CHECKPOINTS}/")

    @property
    def architecture(self) -> str | None:
        """The first of `architectures`; a TensorRT-LLM checkpoint names its one in `architecture`.

        Raises:
            ConfigError: its config holds something else there.
        """
        return next(iter(architectures(self.config)), None)


def is_content(name: str, weights: tuple[str, ...]) -> bool:
    """Whether a file belongs to the model as it is used: not weights in another format, nor what lies in other folders.

    Args:
        name: its path inside the model.
        weights: the files that hold the weights, each weight once.
    """
    folder, _, last = name.rpartition("/")
    if folder:
        return folder == TEMPLATES and last.endswith(".jinja")
    if last.endswith(".safetensors"):
        return last in weights
    if last.endswith(INDEX_SUFFIX):
        # The index of weights that are not taken would name files that are not there.
        return not last.startswith("consolidated") or any(name.startswith("consolidated") for name in weights)
    return last.endswith(CONTENT_SUFFIXES) or last.startswith(CARD_NAMES)
