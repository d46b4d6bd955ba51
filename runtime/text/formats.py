"""Finds how a model's replies begin, go on and end, out of its template, its tokenizer and its config."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from runtime.text.marks.learned import MARKUP, turn_marks
from runtime.text.replies.marks import Marks, TurnMarks, small
from runtime.text.replies.reply_format import ReplyFormat
from runtime.text.template import ChatTemplate
from runtime.text.text_tokens import TextTokens


def format_of(
    template: ChatTemplate,
    tokenizer: Any,  # noqa: ANN401 - transformers is untyped to us
    control: re.Pattern[str],
    tokens: TextTokens,
    vocabulary: int | None,
) -> ReplyFormat:
    """How the replies of a model begin, go on and end.

    Args:
        template: its own.
        tokenizer: its own.
        control: matches its control tokens.
        tokens: text to token ids.
        vocabulary: how many tokens it can say; none where that is not known.
    """
    added = {str(token.content): (number, token.special) for number, token in tokenizer.added_tokens_decoder.items()}
    special = {text for text, (_, hidden) in added.items() if hidden}
    marks = template.thought.marks
    shows = any(small(text) in marks.decisive for text in special)
    # Special tokens are in no text unless one of them is to be seen; then none of the others may be said either. Marks
    # that are no special tokens always are.
    dropped = {text for text, (_, hidden) in added.items() if (shows if hidden else MARKUP.fullmatch(text))}
    ends = [added[template.turn_end][0]] if template.turn_end in added else []
    # One that the model has no output for can end nothing, and vLLM refuses it.
    ends = [end for end in ends if vocabulary is None or end < vocabulary]
    turns = turn_marks(template.render, control, ends_by_token=bool(ends))
    if dropped - marks.decisive or turns != TurnMarks():
        marks = Marks(template.thought.pairs, dropped, turns)
    return ReplyFormat(
        marks=marks,
        begun=template.begun,
        thinks=template.thinks,
        thought_ends=template.thought.ends,
        stop_token_ids=tuple(ends),
        shows_special_tokens=shows,
        encode=tokens.encode_prompt,
    )


# Where configs keep the language model's own section, as the pipeline reads them too.
TEXT_SECTIONS = ("text_config", "llm_config", "language_config")


def vocabulary_size(folder: Path) -> int | None:
    """How many tokens the model can say, where its config tells: the language model's own word before the whole's."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        thinker = config.get("thinker_config")
        held = [part for part in (config, thinker) if isinstance(part, dict)]
        sections = [part.get(name) for part in held for name in TEXT_SECTIONS]
    except (OSError, ValueError, AttributeError):
        return None
    sizes = [part.get("vocab_size") for part in (*sections, *reversed(held)) if isinstance(part, dict)]
    return next((size for size in sizes if isinstance(size, int) and not isinstance(size, bool)), None)
