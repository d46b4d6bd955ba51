"""Chat templates whose marks are plain text, and a tokenizer with thousands of marks that are tokens."""

from __future__ import annotations

import json
from pathlib import Path

from tests.harness.models import chat_templates

ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'system' %}{{ '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}{% elif m['role'] == 'user' %}"
    "{{ 'USER: ' + m['content'] + ' ' }}{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ALPACA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}{% elif m['role'] == 'user' %}"
    "{{ '### Instruction:\n' + m['content'] + '\n\n' }}{% else %}{{ '### Response:\n' + m['content'] + '\n\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
OPENCHAT = (
    "{{ bos_token }}{% for m in messages %}{{ 'GPT4 Correct ' + m['role'].title() + ': ' + m['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)
CHINESE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}{% elif m['role'] == 'user' %}"
    "{{ '问：' + m['content'] + '\n\n' }}{% else %}{{ '答：' + m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '答：' }}{% endif %}"
)
BARE = (
    "{% for m in messages %}{{ m['role'] + '\n' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
)
# Says how thoughts and calls are set apart, in a branch that no plain conversation reaches.
TOOLS = ZEPHYR + "{% if tools %}{{ '<my_tool>' + tools | tojson + '</my_tool>' }}[MY_CALLS]{% endif %}"

# Each with the marks that it writes.
TEMPLATES: dict[str, tuple[str, list[str]]] = {
    "zephyr": (ZEPHYR, ["<|system|>", "<|user|>", "<|assistant|>"]),
    "llama2": (LLAMA2, ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"]),
    "vicuna": (VICUNA, ["USER:", "ASSISTANT:"]),
    "alpaca": (ALPACA, ["### Instruction:", "### Response:"]),
    "openchat": (OPENCHAT, ["GPT4 Correct User:", "GPT4 Correct Assistant:"]),
    "chinese": (CHINESE, ["问：", "答："]),
    "tools": (TOOLS, ["<|system|>", "<|user|>", "<|assistant|>", "<my_tool>", "</my_tool>", "[MY_CALLS]"]),
}


def write(template: str, folder: Path) -> Path:
    """Write a tokenizer folder with a template; its control tokens are `<s>` and `</s>` alone."""
    chat_templates.write("pieces", folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


# As many as Gemma 3 has, and Mistral Nemo.
RESERVED = [*(f"<unused{n}>" for n in range(6_242)), *(f"<SPECIAL_{n}>" for n in range(1_000))]


def write_large(folder: Path) -> Path:
    """Write a tokenizer folder with a large vocabulary of reserved control tokens."""
    chat_templates.write("chatml", folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first = max(token["id"] for token in tokenizer["added_tokens"]) + 1
    tokenizer["added_tokens"] += [{"id": first + n, "content": text, **flags} for n, text in enumerate(RESERVED)]
    path.write_text(json.dumps(tokenizer))
    return folder
