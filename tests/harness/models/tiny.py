"""Tiny random language models, made in a second, for tests that need a real checkpoint."""

from __future__ import annotations

import json
import random
from pathlib import Path

VOCABULARY = 256


def llama(folder: Path) -> Path:
    """Write a Llama with two layers, 64 wide, in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _save(LlamaForCausalLM, LlamaConfig(**_shape(), tie_word_embeddings=True), folder)


def wide_llama(folder: Path) -> Path:
    """Write a Llama whose heads are 32 wide, the least that vLLM's attention on a CPU has, and which is sure of itself.

    Its weights are large: two engines that compute it differ by less than its choices do.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = _shape() | {"hidden_size": 128}
    return _save(LlamaForCausalLM, LlamaConfig(**shape, tie_word_embeddings=False, initializer_range=0.2), folder)


def mixtral(folder: Path) -> Path:
    """Write a Mixtral of the same size, with four experts of which two are used."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**_shape(), num_local_experts=4, num_experts_per_tok=2)
    return _save(MixtralForCausalLM, config, folder)


def samples(path: Path, *, count: int = 4, length: int = 32) -> Path:
    """Write calibration samples of random token ids."""
    draw = random.Random(0)
    lines = [json.dumps([draw.randrange(VOCABULARY) for _ in range(length)]) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _shape() -> dict[str, int]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }


def _save(model_class, config, folder: Path) -> Path:
    import torch

    torch.manual_seed(0)
    model_class(config).to(torch.bfloat16).save_pretrained(folder)
    return tokenizer(folder)


def tokenizer(folder: Path) -> Path:
    """Write a tokenizer with a token for each byte, and a chat template."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    backend = Tokenizer(BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    return folder
