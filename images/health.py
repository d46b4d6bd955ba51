"""The container's health: 0 when `/readyz` answers 200."""

import os
import sys
from http.client import HTTPConnection, HTTPException

host = os.environ.get("HOST") or "127.0.0.1"
everywhere = host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
try:
    connection = HTTPConnection("127.0.0.1" if everywhere else host, int(os.environ.get("PORT") or 8000), timeout=2)
    connection.request("GET", "/readyz")
    sys.exit(0 if connection.getresponse().status == 200 else 1)
except (OSError, HTTPException, ValueError):
    sys.exit(1)
