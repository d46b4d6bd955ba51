"""Tokenizers that either generation of transformers saved; integration/test_trt_environment.py loads them in both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from runtime.artifact.generations import older_tokenizer, saved_by_newer
from runtime.text.tokenizer import load_fast_tokenizer
from tests.harness.models import saved


def stated(folder: Path) -> dict[str, object]:
    return json.loads((folder / "tokenizer_config.json").read_bytes())


def test_what_this_transformers_saves_is_known_as_the_newer_ones_and_rewritten_once(tmp_path: Path) -> None:
    for folder in saved.write_all(tmp_path):
        newer = stated(folder)
        assert saved_by_newer(newer), folder.name
        older = older_tokenizer(newer)
        assert not saved_by_newer(older), folder.name
        assert older_tokenizer(older) == older
        assert older.get("additional_special_tokens") == newer.get("extra_special_tokens")


@pytest.mark.parametrize(
    "older",
    [
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "extra_special_tokens": {}},
        {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<a>"]},
        {},
    ],
)
def test_what_the_older_one_saved_is_left_as_it_is(older: dict[str, object]) -> None:
    assert not saved_by_newer(older)
    assert older_tokenizer(older) == older


@pytest.mark.parametrize("version", ["4.57.3", transformers.__version__])
def test_a_folder_without_a_fast_tokenizer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr("transformers.__version__", version)
    for folder in saved.write_all(tmp_path):
        (folder / "tokenizer.json").unlink()
        with pytest.raises(ValueError, match=f"^{folder}: expected a .*tokenizer") as caught:
            load_fast_tokenizer(folder)
        assert "\n" not in str(caught.value)


def test_a_vocabulary_without_the_fast_file_is_enough(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"]))
    assert load_fast_tokenizer(folder)("hello")["input_ids"] == [2, 5, 3]
