"""Sealing: values as they lie in the store, readable with the right key and in their own place alone.

    form (1 byte) │ without keys: the value
    form (1 byte) │ key's number (4 bytes) │ nonce (12 bytes) │ AES-256-GCM of the value, with its tag

A value belongs to its place: the name of its key in the store and the epoch under which it was written are the cipher's
associated data. Put elsewhere, or under another epoch, it does not open.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_PLAIN, _SEALED = b"\x01", b"\x02"
_NUMBER_BYTES, _NONCE_BYTES = 4, 12
# Bytes that sealing adds.
OVERHEAD = 1 + _NUMBER_BYTES + _NONCE_BYTES + 16


FOREIGN = "it has another form than this server's values"
ENCRYPTED = "it is encrypted, and SESSION_STORE_KEY_FILE is not set"
NOT_ENCRYPTED = "it is not encrypted, and SESSION_STORE_KEY_FILE is set"


class SealError(Exception):
    """A value that was not written by a server with our keys, or lies where it does not belong."""


class Sealer:
    """Seals and opens values. Without keys they are written as they are.

    Args:
        keys: 32 bytes each; the first seals, all open.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._ciphers = {_number(key): AESGCM(key) for key in keys}
        self._first = _number(keys[0]) if keys else None

    def seal(self, value: bytes, place: bytes) -> bytes:
        """A value as it is written at a place."""
        if self._first is None:
            return _PLAIN + value
        nonce = os.urandom(_NONCE_BYTES)
        return _SEALED + self._first + nonce + self._ciphers[self._first].encrypt(nonce, value, place)

    def open(self, sealed: bytes, place: bytes) -> bytes:
        """The value that was written at a place.

        Raises:
            SealError: it is none of ours, or was altered, or moved.
        """
        form, rest = sealed[:1], sealed[1:]
        if self._first is None:
            if form != _PLAIN:
                raise SealError(ENCRYPTED if form == _SEALED else FOREIGN)
            return rest
        if form != _SEALED:
            raise SealError(NOT_ENCRYPTED if form == _PLAIN else FOREIGN)
        number, rest = rest[:_NUMBER_BYTES], rest[_NUMBER_BYTES:]
        cipher = self._ciphers.get(number)
        if cipher is None:
            raise SealError("it was encrypted with a key that SESSION_STORE_KEY_FILE does not have")
        try:
            return cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise SealError("it was altered, or written at another place") from None


def _number(key: bytes) -> bytes:
    return hashlib.sha256(b"yap session key\0" + key).digest()[:_NUMBER_BYTES]
