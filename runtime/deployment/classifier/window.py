"""What a classifier's `config.json` says of it, for the plan, which has a config and no model."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.defaults import TOOL_WINDOW

# Positions of these models begin after the padding index: the index that a config means which does not name it. Tests
# hold it equal to what `positions_of` finds in the model of every family.
PADDING_BEFORE_POSITIONS = {
    "camembert": 1,
    "data2vec-text": 1,
    "esm": 1,
    "ibert": 1,
    "layoutlmv3": 1,
    "lilt": 0,
    "longformer": 1,
    "luke": 1,
    "markuplm": 0,
    "mpnet": 1,
    "roberta": 1,
    "roberta-prelayernorm": 1,
    "xlm-roberta": 1,
    "xlm-roberta-xl": 1,
    "xmod": 1,
}
# This one does not ask its config for the index.
FIXED_PADDING = frozenset({"mpnet"})


def window_of(config: Mapping[str, object]) -> int:
    """Tokens that a classifier reads at most, by its `config.json`: what is planned, gated and served.

    A checkpoint may say in `trained_window` that it learned from shorter texts than it has positions for.
    """
    text = config.get("text_config")
    nested: Mapping[str, object] = text if isinstance(text, Mapping) else {}
    named = [part.get(name) for part in (config, nested) for name in ("max_position_embeddings", "n_positions")]
    window = next((value for value in named if isinstance(value, int) and value > 0), TOOL_WINDOW)
    kind = str(config.get("model_type", ""))
    if kind in PADDING_BEFORE_POSITIONS:
        padding = config.get("pad_token_id")
        if kind in FIXED_PADDING or not isinstance(padding, int):
            padding = PADDING_BEFORE_POSITIONS[kind]
        window -= padding + 1
    return trained_window(config, window)


def is_multi_label(config: Mapping[str, object]) -> bool:
    """Whether the labels do not exclude each other, by a classifier's `config.json`."""
    return config.get("problem_type") == "multi_label_classification"


def trained_window(config: Mapping[str, object], window: int) -> int:
    """A window in tokens, or the shorter one that the checkpoint learned from."""
    trained = config.get("trained_window")
    return min(window, trained) if isinstance(trained, int) and trained > 0 else window
