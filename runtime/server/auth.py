"""Who may connect: API keys, found in a time that tells nothing of them, and browsers' origins."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from runtime.deployment.keys import UNNAMED, ApiKey
from runtime.deployment.settings import canonical_origin
from runtime.turns.principal import Principal


@dataclass(frozen=True, slots=True)
class Credential:
    """A key that was shown, and whose it is.

    Attributes:
        principal: the holder.
        digest: of the key.
    """

    principal: Principal
    digest: bytes


class Keyring:
    """The keys that the server accepts. They can be replaced while it runs.

    Args:
        keys: at least one.
        separate_caches: whether each principal has a prefix cache of its own.
    """

    def __init__(self, keys: Sequence[ApiKey], *, separate_caches: bool = True) -> None:
        self._separate_caches = separate_caches
        self._numbers = count(1)  # for principals without a name
        self._principals: dict[str | bytes, Principal] = {}  # by name, or by digest where the key has none
        self._pepper = secrets.token_bytes(32)  # where a key lies in the table depends on it, so time tells nothing
        self._credentials: dict[bytes, Credential] = {}  # by a hash of the digest
        self.replace(keys)

    def __len__(self) -> int:
        """How many holders of keys there are."""
        return len(self._principals)

    @property
    def principals(self) -> tuple[Principal, ...]:
        """All holders of keys."""
        return tuple(self._principals.values())

    def replace(self, keys: Sequence[ApiKey]) -> tuple[Principal, ...]:
        """Accept these keys from now on, and no others; return the principals that are gone.

        A principal stays the same as long as its name is there, or, without a name, its key.
        """
        if not keys or not all(key.secret.get_secret_value() for key in keys):
            raise ValueError("expected at least one API key, none of them empty")
        # Digests are looked up, so that neither a key's content nor its length shows in the time it takes.
        digests = [_digest(key.secret.get_secret_value()) for key in keys]
        wanted = [digest if key.name is None else key.name for key, digest in zip(keys, digests, strict=True)]
        before = self._principals
        self._principals = {}
        for identity in wanted:
            if identity not in self._principals:
                self._principals[identity] = before.get(identity) or self._new(identity)
        credentials: dict[bytes, Credential] = {}
        for identity, digest in zip(wanted, digests, strict=True):
            credentials.setdefault(self._place(digest), Credential(self._principals[identity], digest))
        self._credentials = credentials
        return tuple(principal for identity, principal in before.items() if identity not in self._principals)

    def identify(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Credential | None:
        """The known key that came; None where no key or a wrong one came.

        The header `X-API-Key` wins over `Authorization: Bearer`, and that over `?api_key=`, also when it is wrong.
        """
        offered = headers.get("x-api-key")
        if offered is None:
            offered = _bearer(headers.get("authorization", ""))
        if offered is None:
            offered = query.get("api_key")
        if offered is None:
            return None
        digest = _digest(offered)
        known = self._credentials.get(self._place(digest))
        return known if known is not None and hmac.compare_digest(known.digest, digest) else None

    def holds(self, credential: Credential) -> bool:
        """Whether a key that was accepted before still is, and is still the same principal's."""
        return self._credentials.get(self._place(credential.digest)) == credential

    def _place(self, digest: bytes) -> bytes:
        """Where a key's digest is looked up: nobody outside can choose one that lies beside another."""
        return hashlib.blake2b(digest, key=self._pepper, digest_size=16).digest()

    def _new(self, identity: str | bytes) -> Principal:
        name = identity if isinstance(identity, str) else f"{UNNAMED}{next(self._numbers)}"
        # Where a key has no name its digest says whose it is: the same on every server, in whatever order keys stand.
        stable = b"name:" + identity.encode() if isinstance(identity, str) else b"key:" + identity
        # Drawn anew: a name that was taken away and is given again does not find what the former holder left.
        return Principal(name, secrets.token_hex(16) if self._separate_caches else None, stable)


def origin_allowed(origin: str | None, allowed: Sequence[str]) -> bool:
    """Whether a browser on that origin may connect. Without a list all may; clients that are no browsers send none."""
    if not allowed or origin is None:
        return True
    return canonical_origin(origin) in {canonical_origin(entry) for entry in allowed}


def _bearer(authorization: str) -> str | None:
    """The key in an `Authorization` header; None where it is absent or of another scheme."""
    scheme, _, key = authorization.strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
