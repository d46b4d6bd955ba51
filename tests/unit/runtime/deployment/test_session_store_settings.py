"""Where sessions are kept, as an operator writes it: addresses, passwords, files of keys, and what is none."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.deployment.session_store import StoreAddress, parse, read_keys, read_password
from runtime.deployment.settings import SettingsError, load


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("memory", None),
        (" Memory ", None),
        ("valkey://store", StoreAddress("store")),
        ("redis://store:7000/3", StoreAddress("store", 7000, database=3)),
        ("REDISS://yap@Store.internal/", StoreAddress("store.internal", tls=True, user="yap")),
        ("valkeys://[::1]:1", StoreAddress("::1", 1, tls=True)),
        ("valkey://a%40b@10.0.0.1", StoreAddress("10.0.0.1", user="a@b")),
    ],
)
def test_an_address(text: str, address: StoreAddress | None) -> None:
    assert parse(text) == address


NONE = """
store:6379 http://store valkey:// valkey://:6379 valkey://store:0 valkey://store:99999 valkey://store/x
valkey://store/99999 valkey://store?db=1 valkey://store#1 valkey://u:geheim@store valkey://:geheim@store valkey://[::1
memory: valkey://one,two:6379 valkey://a..b valkey://. valkey://- valkey://%68 valkey://a\\b valkey://[::1::] valkey://u%00@store
valkey://u%20v@store valkey://a*
"""


@pytest.mark.parametrize(
    "text", ["", "valkey://st ore", f"valkey://{'a' * 64}", f"valkey://{'a.' * 128}b", *NONE.split()]
)
def test_what_is_no_address_is_told_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(text)
    assert "geheim" not in str(refused.value)


@given(st.text(max_size=40) | st.text("aö%-_.,:/@[]*", max_size=70).map("valkey://{}".format))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse(text)
    except ValueError:
        return
    assert address is None or (address.host and 0 < address.port < 65536)
    if address is not None:
        address.host.encode("idna")  # as whoever connects does


@pytest.mark.parametrize(
    "text", ["valkey://yap_store", "valkey://höhle.example", "valkey://store.", "valkey://[fe80::1%eth0]"]
)
def test_names_that_hosts_have(text: str) -> None:
    assert parse(text)


@pytest.mark.parametrize("data", [b"geheim", b"geheim\n", b"geheim\r\n", b"\xef\xbb\xbfgeheim\n"])
def test_a_password_is_the_line_of_its_file(data: bytes) -> None:
    assert read_password(data) == "geheim"


@pytest.mark.parametrize("data", [b"", b"\n", b"a\nb", b"\xff", b"a\0"])
def test_what_is_no_password(data: bytes) -> None:
    with pytest.raises(ValueError, match="on one line"):
        read_password(data)


def test_a_file_of_keys_in_both_forms_with_comments() -> None:
    one, two, three = bytes(range(32)), bytes(range(1, 33)), b"\xfb" * 32
    lines = ["# new", one.hex(), "", base64.b64encode(two).decode(), base64.urlsafe_b64encode(three).decode()]
    for end in ("\n", "\r\n", "\r"):
        assert read_keys(end.join(lines).encode()) == (one, two, three)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "a key of 32 bytes"),
        (b"# nothing\n", "a key of 32 bytes"),
        (b"abcd\n", "on line 1"),
        (b"\n" + b"0" * 63, "on line 2"),
        (b"0" * 64 + b"\n" + b"0" * 64, "each key once"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_what_is_no_file_of_keys(data: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_keys(data)


def test_everything_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("geheim")
    values = {"ARTIFACT": "x", "TEXT_API_KEY": "k", "SESSION_STORE": "valkey://u:geheim@store"}
    values |= {"SESSION_STORE_PASSWORD_FILE": str(tmp_path / "none"), "SESSION_STORE_KEY_FILE": str(tmp_path / "keys")}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load()
    told = "\n".join(refused.value.problems)
    assert "geheim" not in told
    for name in ("SESSION_STORE:", "SESSION_STORE_PASSWORD_FILE:", "SESSION_STORE_KEY_FILE:"):
        assert name in told
    monkeypatch.setenv("SESSION_STORE", "valkey://store")
    monkeypatch.setenv("SESSION_STORE_CA_FILE", str(tmp_path / "keys"))
    with pytest.raises(SettingsError, match="SESSION_STORE_CA_FILE: expected an address rediss"):
        load()


def test_a_file_of_certificates_has_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    values = {
        "ARTIFACT": "x",
        "TEXT_API_KEY": "k",
        "SESSION_STORE": "rediss://store",
        "SESSION_STORE_CA_FILE": str(file),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    begin, end = "-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n"
    for none in (
        "",
        "geheim",
        begin,
        begin + "AAAA\n" + end,
        "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
    ):
        file.write_text(none)
        with pytest.raises(SettingsError, match=r"SESSION_STORE_CA_FILE: expected certificates \(PEM\)"):
            load().store()
    command = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=x", "-keyout", "/dev/null"]
    made = subprocess.run([*command, "-out", "-"], check=True, capture_output=True, text=True).stdout
    file.write_text("# whose it is: Höhle\n" + made)  # of one that is no authority of others too
    store = load().store()
    assert store is not None
    assert store.ca_file == file
