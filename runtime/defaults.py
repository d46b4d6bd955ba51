"""Defaults that more than one module, or a text, needs: each stands here and nowhere else.

The ground floor: imports nothing of ours. Settings, the classes that they fill, error texts and generated pages take
their values from here; a test holds the hand-written pages and the scripts in the images equal. Sampling's defaults and
bounds stand in `engines.Sampling` and `wire.messages.DEFAULT_BOUNDS`.
"""

from __future__ import annotations

from typing import Literal, TypeVar

T = TypeVar("T")

# Where
HOST = "0.0.0.0"  # noqa: S104 - a server in a container listens everywhere
PORT = 8000
ADMIN_HOST = "127.0.0.1"

# Connections. Times in seconds.
CONNECTIONS = 64
HANDSHAKE_TIMEOUT_S = 0.5
HANDSHAKE_DEADLINE_S = 10.0
# Longer than what stands before servers keeps connections: nginx 60 s, Caddy 120 s. Who closes first loses no request.
KEEP_ALIVE_S = 150.0
# Sockets without a slot, besides one for each slot: everybody may come back at once.
UNADMITTED = 256
IDLE_TIMEOUT_S = 150.0
IDLE_CLOSE_CODE = 4000
MESSAGE_BYTES = 262_144
CANCEL_SENTINEL = "__CANCEL__"
END_SENTINEL = "__END__"

# Sessions: how many, and the memory of their texts.
SESSIONS = 10_000
SESSION_BYTES = 1_073_741_824
# The session store: the longest wait for it, and what it keeps of one session: four times what the prompt shows of it.
STORE_TIMEOUT_S = 0.25
STORED_SESSION_BYTES = 65_536

# Rate limits: so many in so many seconds.
MESSAGES, MESSAGE_WINDOW_S = 25, 60.0
CANCELS, CANCEL_WINDOW_S = 25, 60.0
PERSONA_UPDATES, PERSONA_UPDATE_WINDOW_S = 4, 60.0
# A recognizer may believe several times that an utterance is over.
PREPARES, PREPARE_WINDOW_S = 50, 60.0

# A reply that is made before its `start`: so much of it, held back for so long.
PREPARE_TOKENS = 48
PREPARE_TTL_S = 3.0

# Budgets, in tokens of the chat model; the input holds the three before it and what the template adds.
PERSONA_TOKENS = 2000
HISTORY_TOKENS = 3000
UTTERANCE_TOKENS = 500
INPUT_TOKENS = 5525
OUTPUT_TOKENS = 150
THINKING_TOKENS = 0
GENERATION_TIMEOUT_S = 60.0

# Building: minutes that tuning the engine's options may take.
TUNE_MINUTES = 15.0

# The tool decision: the probability from which it is yes, and what the classifier sees at most.
TOOL_THRESHOLD = 0.66
TOOL_TOKENS = 1536
TOOL_TIMEOUT_S = 10.0
# A classifier's window where its config does not tell.
TOOL_WINDOW = 512

# Parts of the GPU's memory: alone, and beside the other model.
GPU_ALONE = 0.90
GPU_CHAT_BESIDE_TOOL = 0.70
GPU_TOOL_BESIDE_CHAT = 0.20

# Engines
KV_DTYPE = "auto"
WEIGHTS_LOADER: Literal["auto", "safetensors", "instanttensor"] = "auto"
# Host memory, in GiB, for KV cache that the GPU had to drop; 0 is none.
KV_OFFLOAD_GIB = 0.0
KV_BLOCK_REUSE = True
CPU_KV_CACHE_GIB = 1.0
# Weights that share a scale where TensorRT-LLM's AWQ says nothing else, and the other size that it has kernels for.
TRT_GROUP_SIZES = (128, 64)
# The release of TensorRT-LLM in the trt lane's lock.
TENSORRT_LLM = "1.2.1"
# CUDA 13 needs at least this driver branch: NVIDIA's CUDA 13.0 release notes, table of minimum driver versions.
CUDA = "13.0"
MINIMUM_DRIVER = 580
# What the queues between an engine's processes need of /dev/shm. Docker gives 64 MiB unless told.
MINIMUM_SHM_MIB = 256

# The log file
LOG_NAME = "server.log"
LOG_MEGABYTES = 100
LOG_FILES = 3

# The pipeline
QUANTIZATION = "4bit"
CALIBRATION_DATASET = "open_platypus"
CALIBRATION_SAMPLES = 64


def first_set(*values: T | None, default: T) -> T:
    """The first value that is set, else the default.

    Only None is unset. `a or b` would take 0, 0.0 and an empty text for unset too, which all are values.

    >>> first_set(None, 0.0, 0.5, default=0.66)
    0.0
    """
    return next((value for value in values if value is not None), default)
