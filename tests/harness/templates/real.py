"""The chat templates of real models: those that the package trl carries, each with a tiny tokenizer of its own.

The package is not imported, which would take what it needs to train: its files are read. It begins with Python 3.11, so
that there are no names before, and tests that want one are skipped there.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# What looks like a control token in a template; those that the model says as text are not special.
CONTROL = re.compile(
    r"<\|[^|<>\s']{1,40}\|?>|<[^|<>\s']{1,40}\|>|<｜[^｜<>\s]{1,40}｜>"
    r"|</?(?:s|think|tool_call)>|<\w+_turn>|<end_of_utterance>|\[/?INST\]"
)
TEXTUAL = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>"})
BEGIN, END = "<|test_bos|>", "<|test_eos|>"

# The package's oldest Python.
HERE = sys.version_info >= (3, 11)
MISSING = "the package with the templates of real models begins with Python 3.11"


@cache
def names() -> tuple[str, ...]:
    """The names of all templates, but for those that were changed for training; none before Python 3.11."""
    if not HERE:
        return ()
    return tuple(sorted(path.stem for path in _folder().glob("*.jinja") if not path.stem.endswith("_training")))


def source(name: str) -> str:
    """Read one of them: the text of a template. Skips the test where there are none."""
    if not HERE:
        pytest.skip(MISSING)
    return (_folder() / f"{name}.jinja").read_text(encoding="utf-8")


def write(name: str, folder: Path) -> Path:
    """Write a tokenizer folder with a real template."""
    return write_template(source(name), folder)


def write_template(template: str, folder: Path, *more: str) -> Path:
    """Write a tokenizer folder with any template; control tokens are those that it names, and `more`."""
    control = [*dict.fromkeys([*CONTROL.findall(template), *more, BEGIN, END])]
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in control if token not in TEXTUAL])
    backend.add_tokens([AddedToken(token, normalized=False) for token in control if token in TEXTUAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN, eos_token=END)
    fast.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@cache
def _folder() -> Path:
    found = importlib.util.find_spec("trl")
    assert found is not None, "the chat templates of real models are missing: run `make setup`"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "chat_templates"
