"""Classifiers of unlike families prove themselves and are asked in batches: what they are is asked of the model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runtime.deployment.classifier import ToolClassifier
from runtime.deployment.classifier.facts import positions_of
from tests.harness.models.classifiers import tokenizer

ENDS = {"bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3, "forced_eos_token_id": 3}
HALVES = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
HALVES |= {name.replace("encoder", "decoder"): size for name, size in HALVES.items()}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

# Sizes of each family, and the positions in its table: behind two that stay free, or behind nothing; none without one.
FAMILIES: dict[str, tuple[dict[str, object], int | None]] = {
    "bart": ({"d_model": 32, "max_position_embeddings": 64, **HALVES, **ENDS}, 64),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 2}, None),
    "convbert": ({**BERT, "embedding_size": 32, "max_position_embeddings": 64}, 64),
    "deberta-v2": ({**BERT, "max_position_embeddings": 64}, 64),
    "funnel": ({"d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "block_sizes": [1, 1]}, None),
    "gemma3_text": ({**BERT, "num_key_value_heads": 2, "head_dim": 16}, None),
    "t5": ({"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16, "eos_token_id": 3}, None),
    "xlm": ({"emb_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64}, 64),
    "xlnet": ({"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}, None),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # DeBERTa uses it
@pytest.mark.parametrize("family", FAMILIES)
async def test_a_family_is_served_in_batches_and_over_its_whole_window(family: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes, positions = FAMILIES[family]
    if family == "t5":
        sizes = sizes | {"decoder_start_token_id": 0}
    words = tokenizer(tmp_path)
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=words, num_labels=2, pad_token_id=0, **sizes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert positions_of(model, 7) == positions
    model.save_pretrained(tmp_path)
    running = ToolClassifier(tmp_path, threshold=0.5, max_tokens=96)
    await running.start()
    try:
        texts = ["look", "look at this", "what is it now you see my screen the cat", "hello " * 200]
        alone = [(await running.decide((), text)).probability for text in texts]
        together = await asyncio.gather(*(running.decide((), text) for text in texts))
        assert running._model is not None
        assert running._model._padded == (family != "xlnet"), "it reads its answer at the last place"
        assert [decision.probability for decision in together] == pytest.approx(alone, abs=1e-3)
        assert running._model is not None
        assert len(running._model._encode((texts[-1],))) == min(96, positions or 96)
    finally:
        await running.shutdown()
