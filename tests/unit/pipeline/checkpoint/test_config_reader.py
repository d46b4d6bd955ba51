"""One reader of configs: whatever they hold becomes a typed value, or one error that says where and what."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.config_reader import (
    MOST_BYTES,
    ConfigError,
    ConfigReader,
    architectures,
    parse_object,
    read_object,
    shown,
    text_config,
)
from runtime.artifact.generations import older_model

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def refusal(read: Callable[[], object]) -> str | None:
    """What the reader refuses; any other error fails the test."""
    try:
        read()
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (4096, 4096),
        (4096.0, 4096),
        ("4096", 4096),
        (" 4096 ", 4096),
        ("4096.0", 4096),
        ([128, 512, 256], 512),
        ([None, 8], 8),
    ],
)
def test_a_number_is_read_however_it_is_written(value: Any, number: int) -> None:
    assert ConfigReader({"width": value}).number("width") == number


@pytest.mark.parametrize("value", [None, "", [], {}])
def test_what_says_nothing_is_absent(value: Any) -> None:
    reader = ConfigReader({"a": value, "b": 7})
    assert reader.number("a", "b") == 7
    assert reader.number("a") is None
    assert reader.inside("a").values == {}
    assert reader.flag("a", default=True)
    assert reader.words("a") == ()


@pytest.mark.parametrize(
    "value",
    [True, 0, -4, 0.5, math.nan, math.inf, 1e300, 10**400, "many", "0x40", "1e3", {"a": 1}, [1, "x"], [[1]], [True]],
)
def test_what_is_no_number_is_named_with_its_key(value: Any) -> None:
    with pytest.raises(ConfigError) as told:
        text_config({"text_config": {"hidden_size": value}}).number("hidden_size")
    assert (told.value.key, told.value.expected) == ("hidden_size", "a whole number from 1")
    assert told.value.found == shown(value)


FLAGS = [(True, True), (0, False), ("true", True), ("False", False), (1.0, None), ([], False)]


@pytest.mark.parametrize(("value", "flag"), FLAGS)
def test_a_flag_is_read_or_refused(value: Any, flag: bool | None) -> None:
    reader = ConfigReader({"tied": value})
    if flag is None:
        with pytest.raises(ConfigError, match="expected true or false in tied, found"):
            reader.flag("tied", default=False)
    else:
        assert reader.flag("tied", default=False) is flag


def test_one_name_may_stand_without_its_list() -> None:
    assert architectures({"architectures": "LlamaForCausalLM"}) == ("LlamaForCausalLM",)
    assert architectures({"architectures": None, "architecture": "LlamaForCausalLM"}) == ("LlamaForCausalLM",)
    for wrong in ([["A"]], {"a": 1}, [1], 7, ["A\nB"]):
        with pytest.raises(ConfigError):
            architectures({"architectures": wrong})


def test_an_inner_section_comes_first_where_it_says_something() -> None:
    reader = text_config({"hidden_size": 1, "vocab_size": 9, "text_config": {"hidden_size": 2, "vocab_size": None}})
    assert (reader.number("hidden_size"), reader.number("vocab_size")) == (2, 9)
    assert text_config({"text_config": None, "hidden_size": 3}).number("hidden_size") == 3
    assert text_config({"thinker_config": {"text_config": {"hidden_size": 4}}}).number("hidden_size") == 4
    for wrong in ([1], "text", 3, True):
        with pytest.raises(ConfigError, match="expected an object in text_config"):
            text_config({"text_config": wrong})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "an empty file"),
        (b" \n", "an empty file"),
        (b"{half", "no JSON"),
        (b"[1]", r"\[1\]"),
        (b"null", "None"),
        (b'\xef\xbb\xbf{"a": 1}', "without a byte order mark"),
        ('{"a": "ü"}'.encode("latin-1"), "another encoding"),
        ('{"a": 1}'.encode("utf-16"), "another encoding"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "no JSON"),
        (b" " * (MOST_BYTES + 1), "MiB"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_json_object_is_one_line(data: bytes, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        parse_object(data)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_object(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a": NaN}')
    assert math.isnan(read_object(tmp_path / "config.json")["a"])  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_an_error(data: bytes) -> None:
    told = refusal(lambda: parse_object(data))
    assert told is None or "\n" not in told


@given(ANYTHING)
def test_any_value_is_read_or_is_an_error_on_one_printable_line(value: Any) -> None:
    reader = ConfigReader({"key": value})
    for read in (
        lambda: reader.number("key"),
        lambda: reader.numbers("key", least=0),
        lambda: reader.flag("key", default=False),
        lambda: reader.word("key"),
        lambda: reader.words("key"),
        lambda: reader.inside("key"),
        lambda: list(reader.sections("key")),
        lambda: text_config({"text_config": value, "thinker_config": value}),
    ):
        told = refusal(read)
        assert told is None or (told.isprintable() and told.encode("utf-8"))


@given(st.integers(1, 10**12), st.sampled_from([int, float, str]))
def test_a_number_survives_every_spelling(number: int, spelled: type) -> None:
    document = json.loads(json.dumps({"n": spelled(number)}))
    assert ConfigReader(document).number("n") == number


def encoded(value: Any) -> Any:
    """A value as transformers 5 writes it: JSON has no words for some numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, list):
        return [encoded(entry) for entry in value]
    return {name: encoded(entry) for name, entry in value.items()} if isinstance(value, dict) else value


@given(st.dictionaries(st.text(), ANYTHING, max_size=4))
def test_numbers_that_json_has_no_words_for_are_read_as_transformers_5_writes_them(config: dict[str, Any]) -> None:
    config.pop("rope_parameters", None)
    written = encoded(config)
    assert repr(parse_object(json.dumps(written).encode())) == repr(config)
    assert repr(older_model(written)) == repr(config)
    assert repr(older_model(config)) == repr(config)


def test_it_is_how_the_installed_transformers_writes_them() -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    values = {"a": [0.0, math.inf], "b": {"c": -math.inf, "d": [math.nan, 1]}}
    assert encoded(values) == transformers.PreTrainedConfig._encode_special_floats(values)


@pytest.mark.parametrize(
    "part", [{"__float__": "1.5"}, {"__float__": 1}, {"__float__": []}, {"__float__": "NaN", "a": 1}]
)
def test_what_only_looks_like_such_a_number_is_left_as_it_is(part: dict[str, Any]) -> None:
    config = {"limit": part, "listed": [part]}
    assert parse_object(json.dumps(config).encode()) == config
    assert older_model(config) == config
