"""The artifact: a folder that is complete, checked and self-describing, and how it is fetched.

`metadata` defines `build_metadata.json`, the one contract between `pipeline` and `runtime`, of the
parts in `schema`; its nouns are offered here. May import `host`.
"""

from runtime.artifact.files.opening import ArtifactError
from runtime.artifact.metadata import (
    CARD_NAME,
    METADATA_NAME,
    SIGNATURE_NAME,
    BuildMetadata,
    FileEntry,
    LaneName,
    Platform,
    StageRecord,
    encode,
    engine_label,
    read,
    seal_of,
)
from runtime.artifact.schema.chat_model import Calibration, ChatModel, Limits, Moe, Quantization
from runtime.artifact.schema.entry import Source
from runtime.artifact.schema.proof import Gate, Validation
from runtime.artifact.schema.tool_model import SCREENSHOT_TOOL, TOOL_FOLDER, ToolLabel, ToolModel, served_tools
from runtime.artifact.schema.tuned_options import (
    EngineChoices,
    RefusedOptions,
    TriedOptions,
    TunedFigures,
    TunedOptions,
    TuningKey,
)

__all__ = [
    "CARD_NAME",
    "METADATA_NAME",
    "SCREENSHOT_TOOL",
    "SIGNATURE_NAME",
    "TOOL_FOLDER",
    "ArtifactError",
    "BuildMetadata",
    "Calibration",
    "ChatModel",
    "EngineChoices",
    "FileEntry",
    "Gate",
    "LaneName",
    "Limits",
    "Moe",
    "Platform",
    "Quantization",
    "RefusedOptions",
    "Source",
    "StageRecord",
    "ToolLabel",
    "ToolModel",
    "TriedOptions",
    "TunedFigures",
    "TunedOptions",
    "TuningKey",
    "Validation",
    "encode",
    "engine_label",
    "read",
    "seal_of",
    "served_tools",
]
