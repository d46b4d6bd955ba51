"""Sources: where models come from, their files and shapes, and weights that came quantized.

May import `embedded` and below.
"""

from pipeline.source.known_config import with_known_config
from pipeline.source.model_content import content_hash, held_twice
from pipeline.source.model_files import CHECKPOINTS
from pipeline.source.model_source import HF_QUANT_CONFIG, checkpoint_in, fetch, read_facts
from pipeline.source.prompt_format import with_prompt_format
from pipeline.source.source_facts import CONTENT_SUFFIXES, EMBEDDED, EMBEDDED_CHAT, SourceFacts

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
    "held_twice",
    "read_facts",
    "with_known_config",
    "with_prompt_format",
]
