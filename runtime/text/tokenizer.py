"""A model's tokenizer with its chat template, from wherever in the folder the template lies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Where several templates are named and none is the default: those for something else than plain talk come last.
SPECIAL_PURPOSES = ("tool", "rag", "tool_use")


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers is untyped to us
    """The fast tokenizer in a folder, with one chat template.

    Raises:
        ValueError: the folder holds no fast tokenizer, or no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise whatever a broken file makes them
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{folder}: expected a tokenizer that can be loaded, found: {first}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{folder}: expected a fast tokenizer (tokenizer.json), found {type(tokenizer).__name__}")
    tokenizer.chat_template = _chosen(tokenizer.chat_template) or _beside(folder)
    if not tokenizer.chat_template:
        raise ValueError(f"{folder}: expected a chat template, found none; serve an instruction-tuned model")
    return tokenizer


def _chosen(templates: object) -> str | None:
    """The one for plain talk: of a list of names and templates, `default` or the first that has no other purpose."""
    if isinstance(templates, str):
        return templates or None
    if isinstance(templates, list):
        templates = {
            str(entry["name"]): entry["template"]
            for entry in templates
            if isinstance(entry, Mapping) and "name" in entry and "template" in entry
        }
    if not isinstance(templates, Mapping):
        return None
    usable = {str(name): text for name, text in templates.items() if isinstance(text, str) and text}
    plain = [name for name in usable if not any(word in name.lower() for word in SPECIAL_PURPOSES)]
    name = next((name for name in ("default", *plain, *usable) if name in usable), None)
    return usable[name] if name is not None else None


def _beside(folder: Path) -> str | None:
    """A template that transformers' tokenizers do not read: the one for processors, or one of several."""
    try:
        document = json.loads((folder / "chat_template.json").read_bytes())
    except (OSError, ValueError):
        document = None
    if isinstance(document, Mapping) and (found := _chosen(document.get("chat_template"))):
        return found
    several = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    return _chosen({path.stem: path.read_text(encoding="utf-8") for path in several})
