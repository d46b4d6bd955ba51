"""Tiny tokenizers with chat templates of the kinds that models have, trained on the spot."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the cat said so to you and the dog said that it is so, number 3 of many, who are you? what is a cat? an animal.",
    "system user assistant Be Ada. It is noon. now hello hi yes? one two three You are a helpful assistant.",
]

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Always a system message, with the date in it, and a beginning-of-sequence token before.
DATED = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set words = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set words = 'You are a helpful assistant.' %}{% set rest = messages %}"
    "{% endif %}{{ '<|head|>system<|/head|>\n\nToday: ' + strftime_now('%d %b %Y') + '\n\n' + words + '<|eot|>' }}"
    "{% for m in rest %}{{ '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)

# No system role, strict alternation; headers are control tokens ([INST]) or, in PIECES, plain text.
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
PIECES = INSTRUCT.replace("[INST] ", "### Human: ").replace(" [/INST]", "\n### Robot: ")

# Takes a system message, and puts it before the last user's words.
ROAMING = (
    "{% if messages[0]['role'] == 'system' %}{% set words = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set words = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + (words + '\n\n' if loop.last and words else '') + m['content'] + "
    "' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)

TEMPLATES = {"chatml": CHATML, "dated": DATED, "instruct": INSTRUCT, "pieces": PIECES, "roaming": ROAMING}
CONTROL_TOKENS = [
    *("<|im_start|>", "<|im_end|>", "<|bos|>", "<|head|>", "<|/head|>", "<|eot|>"),
    *("<s>", "</s>", "[INST]", "[/INST]"),
]
ROLES = {
    "chatml": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    "dated": {"bos_token": "<|bos|>", "eos_token": "<|eot|>"},
}


@cache
def trained(metaspace: bool) -> Tokenizer:
    """Train a tiny tokenizer: byte-level, or SentencePiece-like with `metaspace`."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=metaspace, unk_token="<unk>" if metaspace else None))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


# Tokens of templates, as tokenizers for which replies' texts are made know them.
CONTROL = ["<s>", "</s>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>"]


@cache
def detokenizing() -> dict[str, PreTrainedTokenizerFast]:
    """Tokenizers that differ in how they make text of tokens, each with the same control tokens.

    `bytes` has the bytes of each character, `pieces` words with a mark for the space before. `stripping`, as Llama 2,
    takes the first space of a text for no part of it.
    """
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    stripping = _untold(metaspace=True)
    stripping.decoder = decoders.Sequence(steps)
    each = {"bytes": _untold(metaspace=False), "pieces": _untold(metaspace=True), "stripping": stripping}
    for tokenizer in each.values():
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL])
    return {name: PreTrainedTokenizerFast(tokenizer_object=tokenizer) for name, tokenizer in each.items()}


def _untold(*, metaspace: bool) -> Tokenizer:
    described = json.loads(trained(metaspace).to_str())
    described["added_tokens"] = []  # a byte is an ordinary token, which has a text
    return Tokenizer.from_str(json.dumps(described))


def write(name: str, folder: Path, *, swallow_left: bool = False) -> Path:
    """Write a tokenizer folder with the template `name`; control tokens are those that the template uses."""
    tokenizer = Tokenizer.from_str(trained(name in ("instruct", "pieces")).to_str())
    used = [token for token in CONTROL_TOKENS if token in TEMPLATES[name] or token in ("<s>", "</s>")]
    tokenizer.add_special_tokens([AddedToken(token, lstrip=swallow_left, normalized=False) for token in used])
    roles = ROLES.get(name, {"bos_token": "<s>", "eos_token": "</s>"})
    if name == "dated":
        tokenizer.add_special_tokens(["<|bos|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATES[name], **roles)
    fast.save_pretrained(folder)
    return folder
