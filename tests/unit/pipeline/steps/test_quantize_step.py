"""What decides whether a calibration that was made before is taken again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.source.prompt_format import NEEDED_NAMES
from pipeline.steps.quantize_step import tokenizer_hash
from tests.harness.models import tiny

READ = sorted(
    (NEEDED_NAMES - {"generation_config.json"}) | {"spiece.model", "qwen.tiktoken", "special_tokens_map.json"}
)
READ += ["added_tokens.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"]
READ += ["additional_chat_templates/chat.jinja", "sentencepiece.bpe.model", "source.spm"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.llama(tmp_path / "model")


@pytest.mark.parametrize("name", READ)
def test_every_file_that_a_tokenizer_may_read_counts(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    found = {tokenizer_hash(folder)}
    for content in ("{}", '{"a": 1}'):
        path.write_text(content)
        found.add(tokenizer_hash(folder))
    assert len(found) == 3


def test_weights_and_cards_do_not_count(folder: Path) -> None:
    before = tokenizer_hash(folder)
    (folder / "model.safetensors").write_bytes(b"others")
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    (folder / "README.md").write_text("a card")
    assert tokenizer_hash(folder) == before


def test_bytes_that_move_from_one_file_to_the_next_count(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    for place, texts in ((folder, ("ab", "c")), (tmp_path / "other", ("a", "bc"))):
        for name, text in zip(("vocab.json", "vocab.txt"), texts, strict=True):
            (place / name).write_text(text)
    assert tokenizer_hash(folder) != tokenizer_hash(tmp_path / "other")
