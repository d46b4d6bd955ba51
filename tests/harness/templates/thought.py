"""Chat templates of models that think, as far as thought goes."""

from __future__ import annotations

CHAT = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
BEGINS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
# No word of thought.
PLAIN = CHAT + BEGINS + "{% endif %}"
# Qwen 3's: thought is switched off by a word to the template.
SWITCHED = (
    CHAT
    + BEGINS
    + "{% if enable_thinking is defined and enable_thinking is false %}"
    + "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# DeepSeek R1's: the prompt opens a thought, and nothing turns that off.
ALWAYS = CHAT + BEGINS + "{{ '<think>\n' }}{% endif %}"
