"""A stand-in for transformers, as far as the worker needs it: encoding and decoding."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tokenizers import Tokenizer

# That of the lane whose quantizer is stood in for.
__version__ = "4.57.3"


class PreTrainedModel:
    """A stand-in for what every model is loaded by."""

    @classmethod
    def from_pretrained(cls, folder: Path, **more: object) -> object:
        raise OSError(f"{folder}: a stand-in loads no model")


class AutoTokenizer:
    """A stand-in that loads the folder's tokenizer."""

    is_fast = True
    vocab_files_names: ClassVar[dict[str, str]] = {}

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, folder: Path, *, local_files_only: bool, **more: object) -> AutoTokenizer:
        assert local_files_only
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")))

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode(text).ids}

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)


PreTrainedTokenizerFast = AutoTokenizer
