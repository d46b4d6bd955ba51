"""A model's tokenizer with its chat template, from wherever in the folder the template lies."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.artifact.generations import TOKENIZER, installed_is_older, older_tokenizer, saved_by_newer

# Where several templates are named and none is the default: those for something else than plain talk come last.
SPECIAL_PURPOSES = ("tool", "rag", "tool_use")

FAST = "tokenizer.json"
# Where else a tokenizer may come from than the files that its class names.
VOCABULARIES = (FAST, "*.model", "*.tiktoken", "tekken.json")


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers is untyped to us
    """The fast tokenizer in a folder, with one chat template.

    Raises:
        ValueError: the folder holds no fast tokenizer, or no chat template.
    """
    tokenizer = load_fast_tokenizer(folder)
    tokenizer.chat_template = _chosen(tokenizer.chat_template) or _beside(folder)
    if not tokenizer.chat_template:
        raise ValueError(f"{folder}: expected a chat template, found none; serve an instruction-tuned model")
    return tokenizer


def load_fast_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers is untyped to us
    """The fast tokenizer in a folder, whichever generation of transformers saved it.

    Raises:
        ValueError: the folder holds none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    stated = _stated(folder)
    try:
        if not (installed_is_older() and saved_by_newer(stated)):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            tokenizer = None if _is_empty(tokenizer, folder) else tokenizer
        elif (folder / FAST).is_file():
            more = {name: value for name, value in older_tokenizer(stated).items() if stated.get(name) != value}
            with _without_warning():
                tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, **more)
        else:
            tokenizer = None
    except Exception as error:  # transformers and tokenizers raise whatever a broken file makes them
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{folder}: expected a tokenizer that can be loaded, found: {first}") from error
    if not getattr(tokenizer, "is_fast", False):
        found = "none" if tokenizer is None else type(tokenizer).__name__
        raise ValueError(f"{folder}: expected a fast tokenizer ({FAST}), found {found}")
    return tokenizer


def _is_empty(tokenizer: Any, folder: Path) -> bool:  # noqa: ANN401
    """Whether it was made of nothing: transformers 5 gives a class its special tokens alone where it finds no file."""
    names = {*VOCABULARIES, *tokenizer.vocab_files_names.values()}
    return not any(next(folder.glob(name), None) for name in names if name)


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    """Keep transformers from warning that the folder names another class than the one that loads it."""
    logger = logging.getLogger("transformers.tokenization_utils_base")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _stated(folder: Path) -> Mapping[str, object]:
    try:
        document = json.loads((folder / TOKENIZER).read_bytes())
    except (OSError, ValueError):
        return {}  # transformers tells what is wrong with it
    return document if isinstance(document, Mapping) else {}


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
