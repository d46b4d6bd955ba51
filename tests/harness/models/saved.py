"""Tokenizers of many classes, trained on the spot and saved as the installed transformers saves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = ["hello world look at this screen", "a b c, the quick brown fox jumps over the lazy dog's back 123"] * 5
# What is tokenized to compare: words, spaces, several scripts, and names of special tokens.
TEXTS = ("hello world look", "a b <|im_start|>user", "the lazy dog's back 123", "  hi\n é 🙂<s>x</s>[SEP]", "")
TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token or '' }}\n{% endfor %}"
)
EXTRA = ["<|extra|>", "<|more|>"]


def _bytes(*special: str) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def _pieces() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    return made


def _words() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    return made


def _chat() -> Tokenizer:
    return _bytes("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>", "<unk>")


def _llama() -> Tokenizer:
    return _bytes("<unk>", "<s>", "</s>")


def _gemma() -> Tokenizer:
    return _bytes("<pad>", "<eos>", "<bos>", "<unk>")


# A class of transformers, and what it is trained from.
CLASSES: dict[str, Callable[[], Tokenizer]] = {
    "BertTokenizer": _words,
    "CamembertTokenizer": _pieces,
    "CohereTokenizer": _chat,
    "DebertaV2Tokenizer": _pieces,
    "GPT2Tokenizer": _chat,
    "GemmaTokenizer": _gemma,
    "LlamaTokenizer": _llama,
    "Qwen2Tokenizer": _chat,
    "RobertaTokenizer": _llama,
    "T5Tokenizer": _pieces,
    "XLMRobertaTokenizer": _pieces,
}


def write_all(folder: Path) -> Iterator[Path]:
    """Write a folder for every class, with and without special tokens of its own."""
    import transformers

    for name, train in CLASSES.items():
        model = json.loads(train().to_str())["model"]
        given: dict[str, Any] = {"vocab": model["vocab"]}
        if model["type"] == "BPE":
            given["merges"] = [tuple(merge) for merge in model["merges"]]
        if model["type"] == "Unigram":
            given["vocab"] = [tuple(piece) for piece in model["vocab"]]
        for label, more in (("plain", {}), ("extra", {"extra_special_tokens": EXTRA})):
            yield _save(getattr(transformers, name)(**given, **more), folder / f"{name}-{label}")
    backends: dict[str, dict[str, Any]] = {
        "plain": {},
        "extra": {"extra_special_tokens": ["<|im_start|>", AddedToken("<|new|>", special=True)]},
        "additional": {"additional_special_tokens": ["<|im_start|>"]},
    }
    for label, more in backends.items():
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=_chat(), eos_token="<|im_end|>", **more)
        yield _save(fast, folder / f"backend-{label}")


def _save(tokenizer: Any, folder: Path) -> Path:
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def described(tokenizer: Any) -> dict[str, object]:
    """All that must be equal for two tokenizers to be the same to a model and its template."""
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}]
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return {
        "ids": ids,
        "plain": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS],
        "special": sorted(tokenizer.all_special_ids),
        "ends": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "size": len(tokenizer),
        "text": tokenizer.apply_chat_template(turns, tokenize=False),
        "decoded": [tokenizer.decode(found, skip_special_tokens=True) for found in ids],
    }
