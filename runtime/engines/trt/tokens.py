"""The tokens that end a reply. TensorRT-LLM is told them with every request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.artifact import ArtifactError

# A model's own list first; without it TensorRT-LLM knows the tokenizer's one end token, and replies run on.
SOURCES = ("generation_config.json", "config.json")
TOKENIZER, TOKENS = "tokenizer_config.json", "tokenizer.json"


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Token ids: the end of a reply, what fills a batch, and further ends."""

    end_id: int
    pad_id: int
    stop_ids: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> SpecialTokens:
        """Read them from a model's folder.

        Raises:
            ArtifactError: no file names a token that ends a reply.
        """
        for name in SOURCES:
            config = _json(folder / name)
            ends = config.get("eos_token_id")
            ids = tuple(ends) if isinstance(ends, list) else (ends,) if isinstance(ends, int) else ()
            if ids:
                pad = config.get("pad_token_id")
                return cls(ids[0], pad if isinstance(pad, int) and pad >= 0 else ids[0], ids[1:])
        if (end := _tokenizers_end(folder)) is not None:
            return cls(end, end, ())
        raise ArtifactError(
            f"{folder}: expected eos_token_id in {' or '.join(SOURCES)}, found none; choose a source that names it"
        )


def _tokenizers_end(folder: Path) -> int | None:
    """The id of the tokenizer's end token, where its files tell."""
    named = _json(folder / TOKENIZER).get("eos_token")
    text = named.get("content") if isinstance(named, dict) else named
    added = _json(folder / TOKENS).get("added_tokens")
    tokens = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    ids = [token.get("id") for token in tokens if text is not None and token.get("content") == text]
    return next((token for token in ids if isinstance(token, int)), None)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: expected JSON, found {error}; make the artifact again") from error
    return document if isinstance(document, dict) else {}
