"""Reads the JSON documents that come with a model, whatever they hold: one typed, tolerant reader for all.

Numbers may come as texts or as whole floats, infinite ones as transformers 5 writes them, one number as a list with one
for each layer, sections as null. What says nothing is as good as absent; what cannot be understood is a `ConfigError`,
which tells the key, what was expected and what is there. Nothing else is raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.artifact.generations import plain_float

# Configs take kilobytes; a table of 100,000 labels, or a tokenizer's added tokens, take megabytes.
MOST_BYTES = 64 << 20
# More than any dimension, count or size of a model.
MOST = 1 << 48
SHOWN = 60
WHOLE_NUMBER = re.compile(r"\s*[+-]?\d{1,18}(\.0*)?\s*")
FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class ConfigError(ValueError):
    """Something in a config cannot be understood.

    Attributes:
        key: where, with its sections, such as `text_config.hidden_size`.
        expected: what would be right.
        found: what is there.
    """

    def __init__(self, key: str, expected: str, found: str) -> None:
        super().__init__(
            f"expected {expected} in {key}, found {found}" if key else f"expected {expected}, found {found}"
        )
        self.key, self.expected, self.found = key, expected, found


def shown(value: object, longest: int = SHOWN) -> str:
    """Return a value on one line, short enough for a message, with nothing in it that a terminal would obey."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        text = type(value).__name__
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return text if len(text) <= longest else f"{text[:longest]}…"


def parse_object(data: bytes) -> dict[str, object]:
    """Return the JSON object that a file holds.

    Raises:
        ConfigError: it holds something else, or more than `MOST_BYTES`.
    """
    if len(data) > MOST_BYTES:
        raise ConfigError("", f"a JSON object of {MOST_BYTES >> 20} MiB at most", f"{len(data) >> 20} MiB")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "", "UTF-8", f"a byte {data[error.start]:#04x} at {error.start}, in another encoding"
        ) from None
    if text.startswith("\ufeff"):
        # What loads the model refuses it too.
        raise ConfigError("", "UTF-8 without a byte order mark", "one; save it without")
    try:
        document: object = json.loads(text, object_hook=plain_float)
    except RecursionError:
        raise ConfigError("", "a JSON object", "one that is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(
            "", "a JSON object", f"no JSON ({shown(str(error))[1:-1]})" if text.strip() else "an empty file"
        ) from None
    if not isinstance(document, dict):
        raise ConfigError("", "a JSON object", shown(document))
    return document


def read_object(path: Path) -> dict[str, object]:
    """Return the JSON object in a file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            return parse_object(file.read(MOST_BYTES + 1))
    except OSError as error:
        raise ConfigError("", "a JSON object", error.strerror or type(error).__name__) from error


@dataclass(frozen=True, slots=True)
class ConfigReader:
    """Reads typed values from a config, or from a section of it.

    Attributes:
        values: what the JSON holds.
        section: where it lies in the document; empty at the top.
    """

    values: Mapping[str, object]
    section: str = field(default="")

    def key(self, name: str) -> str:
        """Return a key with its section."""
        plain = name if name.isprintable() and len(name) <= SHOWN else shown(name)
        return f"{self.section}.{plain}" if self.section else plain

    def states(self, name: str) -> bool:
        """Whether a key says something: null, an empty text and an empty list do not."""
        return self.values.get(name) not in (None, "", [], {})

    def first(self, names: Sequence[str]) -> str | None:
        """Return the first of several keys that says something."""
        return next((name for name in names if self.states(name)), None)

    def inside(self, *names: str) -> ConfigReader:
        """Return the reader of a section, the first of several names that is there; an empty one where none is.

        Raises:
            ConfigError: something else than a section is there.
        """
        name = self.first(names)
        if name is None:
            return ConfigReader({}, self.key(names[0]))
        value = self.values[name]
        if not isinstance(value, Mapping):
            raise ConfigError(self.key(name), "an object", shown(value))
        return ConfigReader(value, self.key(name))

    def merged(self, inner: ConfigReader) -> ConfigReader:
        """Return a reader of this level in which what an inner section says comes first."""
        stated = {name: value for name, value in inner.values.items() if inner.states(name)}
        return ConfigReader({**self.values, **stated}, self.section)

    def number(self, *names: str, least: int = 1) -> int | None:
        """Return a whole number, the largest where each layer has its own; none where no key says one.

        Raises:
            ConfigError: something else is there, or a number below `least`.
        """
        numbers = self.numbers(*names, least=least)
        return max(numbers) if numbers else None

    def numbers(self, *names: str, least: int = 1) -> tuple[int, ...]:
        """Return one whole number, or one for each layer; none at all where no key says one.

        Raises:
            ConfigError: something else is there, or a number below `least`.
        """
        name = self.first(names)
        if name is None:
            return ()
        value = self.values[name]
        listed = value if isinstance(value, list) else [value]
        # In lists null stands for a layer without it.
        numbers = [_whole(entry) for entry in listed if not (isinstance(value, list) and entry is None)]
        if not numbers or any(number is None or not least <= number <= MOST for number in numbers):
            raise ConfigError(self.key(name), f"a whole number from {least}", shown(value))
        return tuple(number for number in numbers if number is not None)

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a yes or no.

        Raises:
            ConfigError: something else is there.
        """
        if not self.states(name):
            return default
        value = self.values[name]
        known = (
            value if isinstance(value, bool) else FLAGS.get(str(value).strip().lower()) if _is_scalar(value) else None
        )
        if known is None:
            raise ConfigError(self.key(name), "true or false", shown(value))
        return known

    def word(self, *names: str) -> str | None:
        """Return a short text on one line, as names of types and formats are; none where no key says one.

        Raises:
            ConfigError: something else is there.
        """
        name = self.first(names)
        if name is None:
            return None
        value = self.values[name]
        if not isinstance(value, str) or not _is_word(value):
            raise ConfigError(self.key(name), "a name", shown(value))
        return value.strip()

    def words(self, *names: str) -> tuple[str, ...]:
        """Return names, where one alone may stand without its list.

        Raises:
            ConfigError: something else is there.
        """
        name = self.first(names)
        if name is None:
            return ()
        value = self.values[name]
        listed = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) and _is_word(entry) for entry in listed):
            raise ConfigError(self.key(name), "names", shown(value))
        return tuple(str(entry).strip() for entry in listed)

    def sections(self, name: str) -> Iterator[ConfigReader]:
        """Yield the readers of the sections that a section holds, as `config_groups` does.

        Raises:
            ConfigError: something else is there.
        """
        held = self.inside(name)
        for key in held.values:
            yield held.inside(str(key))


def text_config(config: Mapping[str, object]) -> ConfigReader:
    """Return the reader of a language model's config; multimodal models keep theirs in a section.

    Raises:
        ConfigError: the section is something else than an object.
    """
    whole = ConfigReader(config)
    inner = whole.inside(*TEXT_SECTIONS)
    if inner.values:
        return whole.merged(inner)
    thinker = whole.inside("thinker_config")
    return whole.merged(thinker.inside(*TEXT_SECTIONS)) if thinker.values else whole


# Names of the section about the language model within a multimodal one.
TEXT_SECTIONS = ("text_config", "llm_config", "language_config")


def architectures(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the classes that a config names; a TensorRT-LLM checkpoint has one, in `architecture`.

    Raises:
        ConfigError: something else is there.
    """
    return ConfigReader(config).words("architectures", "architecture")


def _whole(value: object) -> int | None:
    """Return a whole number, in whichever way it is written."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and WHOLE_NUMBER.fullmatch(value):
        return int(value.strip().partition(".")[0])
    return None


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float)


def _is_word(text: str) -> bool:
    return 0 < len(text.strip()) <= 200 and text.isprintable()
