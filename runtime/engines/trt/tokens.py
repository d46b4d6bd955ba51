"""The tokens that end a reply. TensorRT-LLM is told them with every request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

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
            ArtifactError: no file names a token that ends a reply, or what one names is no token.
        """
        for name in SOURCES:
            config = _json(folder / name)
            ids = _ends(config.get("eos_token_id"), folder / name)
            if ids:
                pad = config.get("pad_token_id")
                return cls(ids[0], pad if _is_token(pad) else ids[0], ids[1:])
        if (end := _tokenizers_end(folder)) is not None:
            return cls(end, end, ())
        raise ArtifactError(
            f"{folder}: expected eos_token_id in {' or '.join(SOURCES)}, found none; choose a source that names it"
        )


def _ends(named: object, path: Path) -> tuple[int, ...]:
    """The tokens that a file names, one or a list of them; none where it is silent."""
    listed = named if isinstance(named, list) else [] if named is None else [named]
    ids = tuple(token for token in listed if _is_token(token))
    if len(ids) < len(listed):
        raise ArtifactError(
            f"{path}: expected a token's number, or a list of them, as eos_token_id, found {str(named)[:60]!r}; "
            "correct it and make the artifact again"
        )
    return ids


def _is_token(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


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
