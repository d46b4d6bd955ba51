"""Where sessions are kept beyond this process, as an operator writes it: an address, and files with what is secret.

    memory                              nowhere else
    valkey://[user@]host[:6379][/0]     a Valkey server
    rediss://[user@]host[:6379][/0]     the same behind TLS; also `valkeys://`, and `redis://` without

A password is never part of the address: it stands in a file of its own. Keys that encrypt stand in another, one a line,
32 bytes in hexadecimal or base64; the first encrypts, and all decrypt, so that keys can be changed one after the other.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

T = TypeVar("T")

MEMORY = "memory"
PORT = 6379
# Database numbers; Valkey has 16 unless it is told otherwise.
MAX_DATABASE = 16_383
KEY_BYTES = 32
# Of a name in the DNS.
MAX_HOST_CHARS = 254

_SCHEMES = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}
_FORM = "`memory`, or valkey://[user@]host[:port][/database], or rediss://… for TLS"


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """A Valkey server.

    Attributes:
        host, port: where it listens.
        tls: whether it is spoken to through TLS.
        user: as whom; none for the default user.
        database: its number.
    """

    host: str
    port: int = PORT
    tls: bool = False
    user: str | None = None
    database: int = 0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'valkey'}://{host}:{self.port}/{self.database}"


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where sessions are kept, with what is secret about it.

    Attributes:
        address: the server.
        password: of the address's user.
        keys: that encrypt values, the one that encrypts first; none leaves them as they are.
        ca_file: certificates that the server's own must come from; the system's where there is none.
    """

    address: StoreAddress
    password: str | None = field(default=None, repr=False)
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    ca_file: Path | None = None


class StoreSettingsError(ValueError):
    """The settings do not say where sessions are kept. One problem an entry, without what is secret."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def gather(
    address: str, *, password_file: Path | None, key_file: Path | None, ca_file: Path | None
) -> StoreSettings | None:
    """What the settings say; none where sessions are kept in memory alone.

    Raises:
        StoreSettingsError: everything that is wrong.
    """
    problems: list[str] = []

    def read(variable: str, file: Path | None, reader: Callable[[bytes], T]) -> T | None:
        if file is None:
            return None
        try:
            return reader(file.read_bytes())
        except OSError as error:
            problems.append(f"{variable}: expected a readable file, found {file} ({error.strerror})")
        except ValueError as error:
            problems.append(f"{variable}: expected {error}, found something else in {file}")
        return None

    try:
        place = parse(address)
    except ValueError as error:
        problems.append(f"SESSION_STORE: expected {error}, found another text")
        place = None
    password = read("SESSION_STORE_PASSWORD_FILE", password_file, read_password)
    keys = read("SESSION_STORE_KEY_FILE", key_file, read_keys) or ()
    read("SESSION_STORE_CA_FILE", ca_file, lambda _: _check_certificates(ca_file))
    if place is not None and ca_file is not None and not place.tls:
        problems.append("SESSION_STORE_CA_FILE: expected an address rediss://… beside it, found one without TLS")
    if problems:
        raise StoreSettingsError(problems)
    return StoreSettings(place, password, keys, ca_file) if place is not None else None


def parse(text: str) -> StoreAddress | None:
    """An address; none where sessions are kept in memory alone.

    >>> str(parse("RedisS://store.internal"))
    'rediss://store.internal:6379/0'

    Raises:
        ValueError: it is none, with what was expected. Its text is not in it: it may hold a password.
    """
    if text.strip().lower() == MEMORY:
        return None
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        raise ValueError(_FORM) from None
    if parts.scheme not in _SCHEMES or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise ValueError(_FORM)
    if parts.password is not None:
        raise ValueError("an address without a password; write that into SESSION_STORE_PASSWORD_FILE")
    if re.search(r"[\s\x00-\x1f\x7f]", text.strip()):
        raise ValueError(_FORM)
    if not _is_host(parts.hostname):
        raise ValueError("the name or the address of one host")
    database = parts.path.strip("/")
    if database and (not re.fullmatch(r"[0-9]{1,5}", database) or int(database) > MAX_DATABASE):
        raise ValueError(f"a database number from 0 to {MAX_DATABASE}")
    user = unquote(parts.username) if parts.username else None
    if user is not None and re.search(r"[\s\x00-\x1f\x7f]", user):
        raise ValueError("a user's name without spaces and control characters")
    return StoreAddress(
        parts.hostname, PORT if port is None else port, _SCHEMES[parts.scheme], user, int(database or 0)
    )


def _is_host(host: str) -> bool:
    """Whether a host can be called so. A name that is none fails at each connection, and not as a network does."""
    if ":" in host:
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            return False
        return True
    try:
        name = host.encode("idna").decode("ascii")
    except UnicodeError:
        return False
    return (
        len(name) <= MAX_HOST_CHARS and re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?", name) is not None
    )


def _check_certificates(file: Path | None) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with suppress(ssl.SSLError):
        context.load_verify_locations(file)
    if not context.cert_store_stats()["x509"]:
        raise ValueError("certificates (PEM)")


def read_password(data: bytes) -> str:
    """The password in a file: its text without the end of the line.

    Raises:
        ValueError: there is none, with what was expected.
    """
    try:
        text = data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        text = ""
    if not text or "\n" in text or "\r" in text or "\0" in text:
        raise ValueError("a file with a password on one line")
    return text


def read_keys(data: bytes) -> tuple[bytes, ...]:
    """The keys in a file, the one that encrypts first. Lines that begin with `#` are comments.

    Raises:
        ValueError: there is none, or a line is none, with what was expected.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("UTF-8 text") from None
    keys = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        key = _key(entry)
        if key is None:
            raise ValueError(f"{KEY_BYTES} bytes in hexadecimal or base64 on line {number}")
        keys.append(key)
    if not keys:
        raise ValueError(f"a key of {KEY_BYTES} bytes, in hexadecimal or base64, on a line")
    if len(set(keys)) < len(keys):
        raise ValueError("each key once")
    return tuple(keys)


def _key(entry: str) -> bytes | None:
    if re.fullmatch(r"[0-9A-Fa-f]{64}", entry):
        return bytes.fromhex(entry)
    try:
        key = base64.b64decode(entry.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == KEY_BYTES else None
