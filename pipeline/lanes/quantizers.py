"""What the quantizers are known not to do, recorded from their installed releases: a plan says it before any work.

llm-compressor rounds linear layers. Experts that transformers keeps in one tensor are taken apart for it; of the model
types here they are not. `python -m tests.harness.models.whole_experts` in the quantizer's environment records them.
"""

from __future__ import annotations

from collections.abc import Mapping

# Of what the record was made.
RECORDED = {"llmcompressor": "0.14.0.1", "transformers": "5.17.0"}
WHOLE_EXPERTS = frozenset(
    {"aria", "aria_text", "inkling_mm_model", "inkling_text", "jetmoe", "longcat_flash", "step3p7"}
)


def whole_experts(config: Mapping[str, object]) -> str | None:
    """Return the model type of a config whose experts llm-compressor cannot take apart; none where it can.

    >>> whole_experts({"model_type": "jetmoe"}), whole_experts({"model_type": "mixtral"})
    ('jetmoe', None)
    """
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        found = part.get("model_type")
        if isinstance(found, str) and found in WHOLE_EXPERTS:
            return found
    return None
