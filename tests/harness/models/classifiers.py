"""Tiny random classifiers, made in a second, that decide by nothing."""

from __future__ import annotations

from pathlib import Path

WORDS = ["look", "at", "this", "hello", "screen", "what", "is", "it", "now", "you", "see", "my", "the", "cat"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tokenizer(folder: Path) -> int:
    """Write a word-level tokenizer, and return the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return len(vocabulary)


def checkpoint(
    family: str, folder: Path, *, labels: int = 2, names: tuple[str, ...] = (), independent: bool = False
) -> Path:
    """Write a tiny random classifier of a family, with weights large enough for its decisions to differ.

    Args:
        labels: how many it has.
        names: what they are called; else they have none.
        independent: they do not exclude each other.
    """
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LongformerConfig,
        LongformerForSequenceClassification,
        ModernBertConfig,
        ModernBertForSequenceClassification,
    )

    torch.manual_seed(3)
    size = tokenizer(folder)
    shape = {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_labels": labels,
        "pad_token_id": 0,
        "initializer_range": 0.6,
    }
    if names:
        del shape["num_labels"]
        shape |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    if independent:
        shape |= {"problem_type": "multi_label_classification"}
    if family == "bert":
        model = BertForSequenceClassification(BertConfig(**shape, max_position_embeddings=64))
    elif family == "longformer":
        config = LongformerConfig(**shape, max_position_embeddings=65, attention_window=8, sep_token_id=3)
        model = LongformerForSequenceClassification(config)
    else:
        ends = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        config = ModernBertConfig(
            **shape, **ends, max_position_embeddings=64, local_attention=8, initializer_cutoff_factor=2.0
        )
        model = ModernBertForSequenceClassification(config)
    model.save_pretrained(folder)
    return folder
