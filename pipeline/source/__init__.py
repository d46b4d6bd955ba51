"""Sources: where models come from, their files and shapes, and weights that came quantized.

May import `embedded` and below.
"""

from pipeline.source.model_source import (
    CHECKPOINTS,
    CONTENT_SUFFIXES,
    EMBEDDED,
    EMBEDDED_CHAT,
    HF_QUANT_CONFIG,
    SourceFacts,
    checkpoint_in,
    content_hash,
    fetch,
    read_facts,
)
from pipeline.source.prompt_format import with_prompt_format

__all__ = [
    "CHECKPOINTS",
    "CONTENT_SUFFIXES",
    "EMBEDDED",
    "EMBEDDED_CHAT",
    "HF_QUANT_CONFIG",
    "SourceFacts",
    "checkpoint_in",
    "content_hash",
    "fetch",
    "read_facts",
    "with_prompt_format",
]
