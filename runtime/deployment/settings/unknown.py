"""Variables that look like settings and are none: misspelt, removed, or of our families and unknown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from runtime.deployment.settings.server import RuntimeSettings
from runtime.wire.near_names import near

REMOVED = {
    "CHAT_MODEL": "models are named when the artifact is made; set ARTIFACT",
    "TOOL_MODEL": "models are named when the artifact is made; set ARTIFACT",
    "DEPLOY_CHAT": "set DEPLOY_MODE",
    "DEPLOY_TOOL": "set DEPLOY_MODE",
}
# Families of names that nobody else uses in an environment of this program's.
FAMILIES = (
    "ARTIFACT_", "CHAT_", "CHECK_SCREEN_", "DRAIN_", "GEN_TIMEOUT", "HANDSHAKE_", "MAX_CONCURRENT_", "MAX_CONNECTIONS_",
    "MAX_SESSIONS", "SCREEN_CHECKED_", "SESSION_IDLE_", "TEXT_API_", "TOOL_", "USER_UTT_", "WS_",
)  # fmt: skip
# The pipeline's variables, which one file of variables may set beside the server's.
PIPELINE = frozenset(
    {
        "AWQ_CACHE_DIR", "AWQ_CALIB_DATASET", "AWQ_NSAMPLES", "AWQ_SEQLEN", "FORCE_REBUILD", "HF_PUSH_PRIVATE",
        "HF_PUSH_REPO_ID", "MAX_NUM_SEQS", "QUANTIZATION", "QUANTIZE_PYTHON", "TOOL_UTTERANCES",
        "TRTLLM_ENGINE_DIR", "TRTLLM_REPO_DIR", "TUNE", "TUNE_MINUTES",
        "TRT_AWQ_BLOCK_SIZE", "TRT_BACKEND", "TRT_CALIB_SEQLEN", "TRT_CALIB_SIZE", "TRT_CHECKPOINT_DIR", "TRT_DTYPE",
        "TRT_MAX_BATCH_SIZE", "TRT_MAX_INPUT_LEN", "TRT_MAX_OUTPUT_LEN",
    }
)  # fmt: skip
# What Kubernetes and Docker set for services, whatever these are called.
_SERVICE = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT(_\d+_(TCP|UDP).*)?$")
# Others' own, which look like ours.
_FOREIGN = frozenset({"HOSTNAME", "LOGNAME", "POST"})


def warnings(names: Iterable[str]) -> list[str]:
    """One line for each name of a variable that was probably meant for this program and has no effect."""
    known = {name.upper() for name in RuntimeSettings.model_fields}
    found = []
    for name in sorted({name.upper() for name in names} - known - PIPELINE - _FOREIGN):
        if name in REMOVED:
            found.append(f"{name}: removed, and ignored; {REMOVED[name]}")
        elif _SERVICE.search(name) and near(name, known) is None:
            continue
        elif (meant := near(name, known)) is not None:
            found.append(f"{name}: unknown, and ignored; did you mean {meant}?")
        elif name.startswith(FAMILIES):
            found.append(f"{name}: unknown, and ignored; `yap-runtime settings` lists all variables")
    return found
