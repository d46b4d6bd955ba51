"""The artifact: a folder that is complete, checked and self-describing, and how it is fetched.

`metadata` defines `build_metadata.json`, the one contract between `pipeline` and `runtime`; its nouns are offered here.
May import `host`.
"""

from runtime.artifact.files.opening import ArtifactError
from runtime.artifact.metadata import (
    CARD_NAME,
    METADATA_NAME,
    SCREENSHOT_TOOL,
    SIGNATURE_NAME,
    TOOL_FOLDER,
    BuildMetadata,
    Calibration,
    ChatModel,
    FileEntry,
    Gate,
    LaneName,
    Limits,
    Moe,
    Platform,
    Quantization,
    Source,
    StageRecord,
    ToolLabel,
    ToolModel,
    Validation,
    encode,
    engine_label,
    read,
    seal_of,
    served_tools,
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
    "FileEntry",
    "Gate",
    "LaneName",
    "Limits",
    "Moe",
    "Platform",
    "Quantization",
    "Source",
    "StageRecord",
    "ToolLabel",
    "ToolModel",
    "Validation",
    "encode",
    "engine_label",
    "read",
    "seal_of",
    "served_tools",
]
