"""A stand-in for transformers, as far as the worker needs it: encoding and decoding."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer


class AutoTokenizer:
    """A stand-in that loads the folder's tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, folder: Path, *, local_files_only: bool) -> AutoTokenizer:
        assert local_files_only
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")))

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode(text).ids}

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
