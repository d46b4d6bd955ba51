"""What the commands in `tests/` share: options, the times of a turn, load, charts. The client itself is `client/`.

`Options` are on every command line, `connect` makes a `yap_client.Talk` of them, and a `TurnRecord` follows one turn to
its end, with the times that a listener sees.
"""

import sys
from pathlib import Path

# The commands run from a checkout, where nothing is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "client"))

try:
    import yap_client as _  # noqa: F401
except ModuleNotFoundError as missing:
    if missing.name not in ("msgspec", "websockets"):
        raise
    raise SystemExit(
        f"error: expected the package `{missing.name}`, found none; `pip install websockets msgspec`, or use the "
        "project's own environment: `make setup`, then `.venv/bin/python` in the place of `python3`"
    ) from None

from .options import Options, connect, parser, positive, read_options, whole
from .turn import TurnRecord, plain, told

__all__ = ["Options", "TurnRecord", "connect", "parser", "plain", "positive", "read_options", "told", "whole"]
