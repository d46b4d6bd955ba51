"""Whatever lies wherever in an event, no key, no signature and nobody's words come out."""

from __future__ import annotations

import json
import logging
import re
import urllib.parse
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from runtime.artifact import ArtifactError
from runtime.deployment.settings import SettingsError
from runtime.engines import EngineDeadError, EngineOptionError, EngineVersionError
from runtime.host.cuda import CudaError
from runtime.host.redaction.errors import describe, explain, without_quotes
from runtime.host.redaction.private_fields import HIDDEN
from runtime.host.redaction.redactor import Redactor

SECRET = "hunter2-Ünter'\"\\x"


@dataclass
class Plain:
    words: object
    next: object = None


class Opaque:
    def __init__(self, words: object) -> None:
        self.words = words

    def __repr__(self) -> str:
        return f"Opaque({self.words!r})"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError(SECRET)

    __str__ = __repr__


SHAPES: tuple[Callable[[Any], object], ...] = (
    lambda inner: [1, inner],
    lambda inner: (inner,),
    lambda inner: deque([inner]),
    lambda inner: {"outer": inner},
    lambda inner: {str(inner): 1},
    lambda inner: {inner if isinstance(inner, (str, bytes)) else "key": "value"},
    lambda inner: {(1, str(inner)): "value"},
    lambda inner: Plain(inner),
    lambda inner: Opaque(inner),
    lambda inner: ValueError(inner),
    lambda inner: KeyError(inner),
    lambda inner: OSError(2, str(inner), str(inner)),
    lambda inner: EngineDeadError(f"it said {inner}"),
    lambda inner: f"before {inner} after",
    lambda inner: f"x{inner}y_{inner}",
    lambda inner: str(inner).encode(),
    lambda inner: bytearray(str(inner).encode()),
    lambda inner: Path("/srv") / str(inner),
    lambda inner: {"broken": Broken(), "then": inner},
    lambda inner: [Broken(), inner],
)


def shown(redactor: Redactor, **event: object) -> str:
    redacted = redactor(None, "info", dict(event))
    return json.dumps(redacted, ensure_ascii=False) + json.dumps(redacted) + repr(redacted)


def appears(secret: str, text: str) -> bool:
    forms = (secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1])
    return any(form in text for form in forms)


@given(
    st.lists(st.sampled_from(SHAPES), min_size=0, max_size=5), st.sampled_from([SECRET, "sk-0123456789", "12345678"])
)
def test_a_key_comes_out_of_nowhere(shapes: list[Callable[[Any], object]], secret: str) -> None:
    value: object = secret
    for shape in shapes:
        try:
            value = shape(value)
        except (TypeError, RuntimeError):  # no key of a mapping, or no text of it
            return
    text = shown(Redactor([SecretStr(secret)]), what=value, event=f"said {secret}", **{f"of {secret}": 1})
    assert not appears(secret, text)


@given(st.text(min_size=6, max_size=20).filter(lambda text: text.strip(" \"'{}[],:") and HIDDEN not in text))
def test_any_text_may_be_a_key(secret: str) -> None:
    if secret in HIDDEN or secret in "what said event":
        return
    redacted = Redactor([SecretStr(secret)])(
        None, "info", {"event": f"said {secret}.", "what": [{"x": secret}, secret]}
    )
    assert secret not in str(redacted["event"])
    assert redacted["what"] == [{"x": HIDDEN}, HIDDEN]


def test_a_number_that_is_a_key_is_hidden() -> None:
    assert Redactor([SecretStr("12345678")]).value([12345678, 8]) == [HIDDEN, 8]


NAMES = ("persona_text", "user_prompt", "X-API-Key", "chatPrompt", "History", "runtime-text", "the_reply", "password")


@given(st.sampled_from(NAMES), st.lists(st.sampled_from(("list", "map", "data")), max_size=4))
def test_what_users_said_is_hidden_by_its_name_at_any_depth(name: str, around: list[str]) -> None:
    value: object = {name: "zebra", "shown": "giraffe"}
    for shape in around:
        value = [value] if shape == "list" else {"inner": value} if shape == "map" else Plain(value)
    text = shown(Redactor(), what=value, **{name: ["zebra"]})
    assert "zebra" not in text
    assert "giraffe" in text


def test_an_object_is_shown_by_its_type_and_plain_data_by_its_fields() -> None:
    assert Redactor().value([Opaque("zebra"), Plain(1, "two")]) == ["<Opaque>", {"words": 1, "next": "two"}]


def test_a_structure_without_an_end_has_one() -> None:
    loop: list[object] = []
    loop.append(loop)
    mapping: dict[str, object] = {"x": loop}
    mapping["self"] = mapping
    assert len(json.dumps(Redactor().value(mapping))) < 10_000


SIGNED = "X-Amz-Signature=5f1e9c7ad&X-Amz-Credential=AKIA%2Feu&Expires=300&sig=zq%2Fx&Policy=eyJTdGF0"
PARTS = ("5f1e9c7ad", "AKIA", "zq%2Fx", "eyJTdGF0", "hf_abcdefgh1234", "s3cr3tpw")


@pytest.mark.parametrize(
    "text",
    [
        f"GET https://cdn-lfs.hf.co/repos/a?{SIGNED} 200",
        f"Redirect to 'https://cas-bridge.xethub.hf.co/xet-bridge/a/b?{SIGNED}'",
        f"[(b'Location', b'https://bucket.s3.amazonaws.com/key?{SIGNED}'), (b'X', b'y')]",
        f'https://cdn:443 "GET /repos/a?{SIGNED} HTTP/1.1" 200 12',
        f"https://host/path#{SIGNED}",
        "https://user:s3cr3tpw@host/path",
        "https://s3cr3tpw@host/path",
        "Authorization: Bearer hf_abcdefgh1234",
        "{'authorization': 'Bearer hf_abcdefgh1234', 'x': 'y'}",
        "[(b'authorization', b'Bearer hf_abcdefgh1234')]",
        "-H 'authorization: Basic s3cr3tpw'",
        "Bearer s3cr3tpw",
        "X-API-Key: s3cr3tpw",
        "Cookie: session=s3cr3tpw",
        "token hf_abcdefgh1234 was refused",
        "/ws?api_key=s3cr3tpw&x=1",
        f"/ws?api_key={quote('s3cr3tpw')}",
    ],
)
def test_an_address_says_where_and_not_what_signs_it(text: str) -> None:
    redacted = Redactor().text(text)
    for part in PARTS:
        assert part not in redacted
    assert HIDDEN in redacted


def test_where_an_address_leads_stays() -> None:
    redacted = Redactor().text(f"GET https://cdn.hf.co/repos/a?{SIGNED} 200; /ws?x=1&page=20")
    assert redacted == f"GET https://cdn.hf.co/repos/a?{HIDDEN} 200; /ws?x=1&page=20"


@given(st.text(alphabet="aA:/?=&@. '\"hf_-;#beartoknuizx\t", max_size=400))
def test_any_text_is_redacted_and_once_is_enough(text: str) -> None:
    redactor = Redactor([SecretStr("hunter2")])
    once = redactor.text(text)
    assert redactor.text(once).count(HIDDEN) >= once.count(HIDDEN)


@pytest.mark.parametrize(
    "piece",
    [
        "?a=",
        "://",
        "bearer ",
        "authorization:",
        'authorization:"',
        'cookie,\\"',
        *("cookie='a',", "cookie:(", "x-token: a\r\n ", "cookie=a\r\n ", "cookie ", "x-a_"),
        "text=(",
        'text="',
        "text:",
        "[",
        "\\",
        '\\"',
        "a-",
        "&",
        "hf_",
        "://a@",
        "?",
        " ",
        "a=",
        "x",
    ],
)
def test_redaction_takes_time_as_long_as_the_text(piece: str) -> None:
    import time

    redactor = Redactor([SecretStr("hunter2")])
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    redactor.text(text)
    assert time.process_time() - started < 5  # a quadratic scan takes minutes


# Errors


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize("kind", [ValueError, KeyError, RuntimeError, UnicodeError, AssertionError, StopIteration])
def test_an_error_is_told_without_its_text(kind: type[Exception]) -> None:
    persona = "zebra"
    inner = raised(kind(f"cannot tokenize {persona}"))
    try:
        try:
            raise TypeError(persona)
        finally:
            raise raised(kind(persona), inner)
    except Exception as error:
        text = explain(error)
    assert "zebra" not in text
    assert text.count(kind.__name__) == 2
    assert "test_redaction.py" in text
    assert "in raised" in text


def test_source_lines_are_not_told() -> None:
    with pytest.raises(ValueError, match="zebra") as caught:
        raise ValueError("zebra")
    assert "zebra" not in explain(caught.value)


@pytest.mark.parametrize(
    "kind", [ArtifactError, EngineDeadError, EngineOptionError, EngineVersionError, CudaError, SettingsError]
)
def test_errors_about_the_machine_keep_their_text(kind: type[Exception]) -> None:
    error = kind.__new__(kind)
    error.args = ("expected two GPUs, found one",)
    assert "expected two GPUs" in describe(error)


def test_an_error_of_the_system_says_what_the_system_says() -> None:
    assert describe(OSError(28, "zebra", "/zebra")) == "OSError: No space left on device"
    assert describe(OSError("zebra")) == "OSError"


def test_a_chain_without_an_end_has_one() -> None:
    error, other = ValueError(1), ValueError(2)
    error.__cause__, other.__cause__ = other, error
    assert explain(error).count("ValueError") == 2


def test_a_traceback_in_a_message_loses_what_it_quotes() -> None:
    text = (
        "Exception in ASGI application\nTraceback (most recent call last):\n"
        '  File "/srv/app.py", line 3, in serve\n    raise ValueError("zebra")\n'
        "runtime.wire.Odd: zebra\nzebra goes on\n"
    )
    told = without_quotes(text)
    assert "zebra" not in told
    assert 'File "/srv/app.py", line 3, in serve' in told
    assert "runtime.wire.Odd" in told


def test_names_of_loggers_are_no_secret() -> None:
    assert Redactor().text(logging.getLogger("runtime.server.process").name) == "runtime.server.process"


@pytest.mark.parametrize("key", ["s3cr3t+key/ab==", "k \u00e9%/", "a&b?c#d"])
@pytest.mark.parametrize("safe", ["", "/"])
def test_a_key_is_hidden_as_it_stands_in_an_address(key: str, safe: str) -> None:
    quoted = urllib.parse.quote(key, safe=safe)
    assert quoted not in Redactor([SecretStr(key)]).text(f"GET /ws/{quoted} 404")


@pytest.mark.parametrize("name", ["x-api-key", "Authorization", "cookie", "hf_token", "X-Amz-Signature", "passwd"])
def test_a_secret_field_is_hidden_as_a_pair_and_by_its_name(name: str) -> None:
    redactor = Redactor()
    for pair in ((name, "opaque"), [name, ["opaque"]], (name.encode(), b"opaque")):
        assert "opaque" not in repr(redactor.value({"headers": [pair, ("host", "h")]}))
    shown = redactor(None, "info", {name: "opaque", "tokens": 3, "token": 5})
    assert "opaque" not in repr(shown)
    assert (shown["tokens"], shown["token"]) == (3, 5)


# What a message quotes


@pytest.mark.parametrize("name", ["Cookie", "cookie", "Set-Cookie", "Authorization", "Proxy-Authorization"])
@pytest.mark.parametrize(
    "value",
    [
        "a=zebra1; b=zebra2; c=zebra3",
        "a=1, b=zebra1",
        'Digest username="zebra1", realm="zebra2", response="zebra3", opaque=zebra4',
        "AWS4-HMAC-SHA256 Credential=zebra1/20260101/eu/s3, SignedHeaders=host, Signature=zebra2",
        "Negotiate zebra1 zebra2",
        "zebra1",
    ],
)
@pytest.mark.parametrize(
    "written", [str, repr, json.dumps, lambda text: repr(text.encode()), lambda text: f"-H {text}"]
)
def test_a_header_is_hidden_to_its_end(name: str, value: str, written: Callable[[str], str]) -> None:
    for text in (
        f"{name}: {written(value)}",
        f"{name}={written(value)}",
        written(f"{name}: {value}"),
        f"sent {{{written(name)}: {written(value)}}}",
        f"sent [({written(name)}, {written(value)})]" if written(name)[0] in "\"'b" else "",
        json.dumps(json.dumps({name: value})),
    ):
        assert "zebra" not in Redactor().text(text), text


PARTS_OF_A_HEADER = st.lists(
    st.sampled_from(
        [
            *('"zebra"', "'zebra'", "zebra", "a=zebra", 'a="zebra"', 'a="zebra; b=zebra"', '"a=zebra"', '"zebra'),
            *(
                '{"a": "zebra"}',
                "[zebra]",
                '{"a": ["zebra", {"b": "zebra"}]} zebra',
                '\\"zebra\\"',
                "(zebra)",
                "b'zebra'",
            ),
            *("[hidden]", '"a\\\\"; zebra', "it's zebra", "zebra%22", '""', "{}"),
        ]
    ),
    min_size=1,
    max_size=4,
)
HEADERS = (
    *("Cookie", "cookie", "Cookie2", "Set-Cookie", "Authorization", "Proxy-Authorization", "X-API-Key", "api-key"),
    *("X-Auth-Token", "PRIVATE-TOKEN", "X-Amz-Security-Token", "Ocp-Apim-Subscription-Key", "x-client-secret"),
    *("X-Goog-Api-Key", "X-Session-Token", "HTTP_AUTHORIZATION", "x-hub-signature", "-Hauthorization"),
)


@given(
    name=st.sampled_from(HEADERS),
    colon=st.sampled_from([":", ": ", " : ", ":\t", ":\r\n "]),
    parts=PARTS_OF_A_HEADER,
    joined=st.sampled_from(["; ", ";", ", ", " ", "\r\n ", ";\n\t", " ;", "&"]),
)
def test_a_header_on_the_wire_is_hidden_whatever_its_parts_look_like(
    name: str, colon: str, parts: list[str], joined: str
) -> None:
    header = f"{name}{colon}{joined.join(parts)}"
    told = Redactor().text(f"GET /giraffe HTTP/1.1\r\n{header}")
    assert "zebra" not in told, header
    assert "giraffe" in told
    if not {'"', "'", "(", "[", "{"} & set(header):  # what is opened and not closed may hide more
        assert "Host: lion" in Redactor().text(f"{header}\r\nHost: lion")
    assert "zebra" not in Redactor().text(repr(header.encode()))
    assert "zebra" not in Redactor().text(json.dumps({"sent": header, "shown": 1}))


@pytest.mark.parametrize("name", ["cookie", "authorization", "X-Api-Key"])
@pytest.mark.parametrize(
    "value", ['"zebra"; b=zebra', "'zebra' ; zebra", '{"a": "zebra"}; zebra', '"a"zebra', '"a"=zebra', "b'a';zebra"]
)
def test_a_header_whose_first_part_is_quoted_goes_on_behind_it(name: str, value: str) -> None:
    for text in (f"{name}={value}", f'"{name}": {value}', f"{name}: {value}", f"('{name}', {value})"):
        assert "zebra" not in Redactor().text(text), text


def test_a_name_of_a_header_in_prose_hides_nothing_else() -> None:
    text = "refused: unexpected token: <, call(cookie='a', status=401) from 10.0.0.1; tokens: 12, monkey-business: yes"
    assert Redactor().text(text) == text.replace("'a'", HIDDEN)


def test_what_follows_a_quoted_header_or_its_line_stays() -> None:
    redacted = Redactor().text(
        "{'Cookie': 'a=b; c=d', 'host': 'giraffe'}\nAuthorization: Digest a=b, c=d\r\nhost: lion"
    )
    assert redacted == "{'Cookie': [hidden], 'host': 'giraffe'}\nAuthorization: [hidden]\r\nhost: lion"


@pytest.mark.parametrize(
    "text", ["Credential=zebra/20260101/eu", "x accessKeyId=zebra y", "api_keys=zebra", "passwd=zebra"]
)
def test_a_parameter_that_names_a_secret_is_hidden(text: str) -> None:
    assert "zebra" not in Redactor().text(text)


@pytest.mark.parametrize(
    "name",
    [
        *("content", "messages", "analysis", "query", "heard", "completion", "delta", "prompt_delta", "promptDelta"),
        *("api_keys", "TEXT_API_KEYS", "accessKey", "lastReply", "raw-content"),
    ],
)
def test_a_field_that_carries_words_or_keys_is_hidden(name: str) -> None:
    assert "zebra" not in shown(
        Redactor(), **{name: "zebra"}, what={name: ["zebra"]}, event=json.dumps({name: "zebra"})
    )


@pytest.mark.parametrize(
    "name", ["context", "key", "keyword", "message_id", "monkey", "api", "signal", "type", "model"]
)
def test_a_field_that_says_nothing_of_users_is_shown(name: str) -> None:
    assert "giraffe" in shown(Redactor(), **{name: "giraffe"})
    assert "giraffe" in Redactor().text(json.dumps({name: "giraffe"}))


@pytest.mark.parametrize(
    "written",
    [
        *(json.dumps, lambda text: json.dumps(text, ensure_ascii=False), repr, quote, urllib.parse.quote_plus),
        lambda text: json.dumps(text).replace("/", "\\/"),
    ],
)
@given(key=st.text(alphabet="aZ9+/=é ü\"'\\%&", min_size=6, max_size=20).filter(lambda text: text == text.strip()))
def test_a_key_is_hidden_as_json_python_and_addresses_write_it(written: Callable[[str], str], key: str) -> None:
    # In quotes or not, the whole of the key goes.
    text = written(key)
    text = text[1:-1] if text[0] in "\"'" and text[0] == text[-1] and len(text) > len(key) else text
    if text not in HIDDEN:
        assert text not in Redactor([SecretStr(key)]).text(f"<{text}>")


WORDS = st.text(alphabet="zebra \\\"'{}[]()\n,:=é🙂", max_size=12).map(lambda text: f"zebra{text}")
VALUES = st.recursive(
    WORDS,
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(WORDS, inner, min_size=1, max_size=2),
    max_leaves=4,
)


@given(
    st.sampled_from((*NAMES, "content", "messages", "heard")),
    VALUES,
    st.lists(
        st.sampled_from([json.dumps, repr, lambda value: json.dumps(value, ensure_ascii=False)]), min_size=1, max_size=3
    ),
)
def test_what_users_said_is_hidden_in_the_json_or_repr_in_a_text(
    name: str, value: object, forms: list[Callable[[object], str]]
) -> None:
    written: object = {"shown": "giraffe", name: value, "then": "lion"}
    for form in forms:
        written = form(written)
    redacted = Redactor().text(f"refused: {written} was sent")
    assert "zebra" not in redacted
    assert "giraffe" in redacted
    if not {"\\", "'"} & set(json.dumps(value, ensure_ascii=False)):  # quotes inside may hide more
        assert redacted.endswith("was sent")
        assert "lion" in redacted


@given(st.sampled_from(NAMES), WORDS)
def test_what_users_said_is_hidden_though_its_text_is_cut_off(name: str, words: str) -> None:
    written = json.dumps({"shown": "giraffe", name: words})
    for end in range(len(written)):
        assert "zebra" not in Redactor().text(written[:end])


def test_a_repr_of_plain_data_in_a_text_hides_what_users_said() -> None:
    text = (
        "Turn(id=3, persona=Text(b'zebra (x'), history=deque([Message(role='user', content='zebra')]), state='giraffe')"
    )
    redacted = Redactor().text(text)
    assert "zebra" not in redacted
    assert "state='giraffe'" in redacted


@given(st.lists(st.text("ab1_", min_size=1, max_size=5), min_size=1, max_size=6), st.text("ab1_ -", max_size=20))
def test_short_keys_hide_whole_words_and_each_the_longest(keys: list[str], text: str) -> None:
    one_by_one = "|".join(rf"(?<![^\W_]){key}(?![^\W_])" for key in sorted(keys, key=len, reverse=True))
    pattern = Redactor([SecretStr(key) for key in keys])._secrets
    assert pattern is not None
    assert [found.span() for found in pattern.finditer(text)] == [m.span() for m in re.finditer(one_by_one, text)]
    assert pattern.pattern.count("(?<!") == 1, "one look at a place, however many keys there are"
