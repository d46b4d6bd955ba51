"""Who may connect: API keys compared in constant time, and browsers' origins."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from pydantic import SecretStr

from runtime.deployment.settings import canonical_origin


class Keyring:
    """The keys that the server accepts."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        if not keys or not all(key.get_secret_value() for key in keys):
            raise ValueError("expected at least one API key, none of them empty")
        # Digests are compared, so that neither a key's content nor its length shows in the time it takes.
        self._digests = tuple(_digest(key.get_secret_value()) for key in keys)

    def identify(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
        """The principal whose key came, as an opaque name; None where no key or a wrong one came.

        The header `X-API-Key` wins over `?api_key=`, also when it is wrong.
        """
        offered = headers.get("x-api-key")
        if offered is None:
            offered = query.get("api_key")
        if offered is None:
            return None
        digest = _digest(offered)
        # Every key is compared, so that the time does not tell which one matched.
        matches = [known for known in self._digests if hmac.compare_digest(known, digest)]
        return matches[0].hex()[:16] if matches else None


def origin_allowed(origin: str | None, allowed: Sequence[str]) -> bool:
    """Whether a browser on that origin may connect. Without a list all may; clients that are no browsers send none."""
    if not allowed or origin is None:
        return True
    return canonical_origin(origin) in {canonical_origin(entry) for entry in allowed}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
