"""The tensors of a checkpoint, as the headers of its safetensors files list them: names, types and shapes.

The format: eight bytes, little endian, with the header's length; the header, JSON; the tensors. A header is read from
any source of bytes, so that of a model on the hub nothing else is fetched.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint.config_reader import ConfigError, read_object, shown

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
PREFIX_BYTES = 8
# safetensors itself refuses longer ones.
MOST_HEADER_BYTES = 100 << 20
# More bytes than any file has, so that sizes stay numbers that can be computed with.
MOST_BYTES = 1 << 60
# The bits of an element of each type that safetensors knows.
BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16},
    **{"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64},
}
# The same weights in the format of Mistral's own code, and weights that are no model of their own.
OTHER_WEIGHTS = ("consolidated", "adapter_model")

# Reads a part of a file: where it begins, and how many bytes of it.
PartReader = Callable[[int, int], bytes]


class HeaderError(ValueError):
    """A file begins with something else than a safetensors header; the message says what."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a checkpoint.

    Attributes:
        dtype: as safetensors writes it, such as BF16, F8_E4M3, I32 or U8.
        shape: its dimensions; of a linear layer's weight first the outputs, then the inputs.
        size: in bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def elements(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        tensors: by name.
        file_size: bytes that the whole file must have.
    """

    tensors: Mapping[str, Tensor]
    file_size: int


def read_header(read: PartReader) -> Header:
    """Read a header: eight bytes, then what they announce.

    Raises:
        HeaderError: something else is there.
    """
    prefix = read(0, PREFIX_BYTES)
    if len(prefix) < PREFIX_BYTES:
        raise HeaderError(f"{len(prefix)} bytes")
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= MOST_HEADER_BYTES:
        raise HeaderError(f"a header of {length} bytes")
    data = read(PREFIX_BYTES, length)
    if len(data) < length:
        raise HeaderError(f"{len(data)} of the header's {length} bytes")
    try:
        document = json.loads(data)
        entries = {name: entry for name, entry in document.items() if name != "__metadata__"}
        tensors = {name: _tensor(name, entry) for name, entry in entries.items()}
        places = sorted((*entry["data_offsets"], name) for name, entry in entries.items())
    except HeaderError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise HeaderError(f"a header that is no table of tensors ({type(error).__name__})") from error
    return Header(tensors, PREFIX_BYTES + length + _end(places))


def header_of(path: Path) -> Header:
    """Read the header of a file on this disk.

    Raises:
        HeaderError: something else is there.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:

        def read(begin: int, length: int) -> bytes:
            file.seek(begin)
            return file.read(length)

        return read_header(read)


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint's folder, from the files that belong to it, by name.

    Raises:
        HeaderError: a file begins with something else than a header.
        ConfigError: the index cannot be understood.
        OSError: a file cannot be read.
    """
    found: dict[str, Tensor] = {}
    for name in weights_in(folder):
        try:
            found.update(header_of(folder / name).tensors)
        except HeaderError as error:
            raise HeaderError(f"{error} in {folder / name}") from error
    return found


def weights_in(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that hold a checkpoint's weights, each weight once.

    Raises:
        ConfigError: the index cannot be understood.
        OSError: the folder cannot be read.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()]
    index = index_name(names)
    return chosen_weights(names, read_object(folder / index) if index else None)


def index_name(names: Iterable[str]) -> str | None:
    """Return the file that says which file holds which weight, as what loads the model reads it; none without one."""
    found = sorted(name for name in names if name.endswith(INDEX_SUFFIX) and "/" not in name)
    ours = [name for name in found if not name.startswith(OTHER_WEIGHTS)]
    return INDEX_NAME if INDEX_NAME in ours else ours[0] if len(ours) == 1 else None


def chosen_weights(names: Iterable[str], index: Mapping[str, object] | None) -> tuple[str, ...]:
    """Choose the files that hold the weights, where a repository may hold them twice.

    What the index names is taken; without one `model.safetensors`; without that what lies beside the config, but no
    weights in another format and no adapters where there is anything else.

    Args:
        names: of all files, by their paths.
        index: the index's content; none without one.

    Raises:
        ConfigError: the index names no files.
    """
    if index is not None:
        return indexed_files(index)
    found = sorted(name for name in names if name.endswith(SUFFIX) and "/" not in name)
    if SINGLE_NAME in found:
        return (SINGLE_NAME,)
    ours = [name for name in found if not name.startswith(OTHER_WEIGHTS)]
    return tuple(ours or found)


def indexed_files(index: Mapping[str, object]) -> tuple[str, ...]:
    """Return the files that an index names.

    Raises:
        ConfigError: it names none, or something that is no file beside it.
    """
    table = index.get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ConfigError("weight_map", "the file of each weight", "none")
    names: set[str] = set()
    for name in table.values():
        if not isinstance(name, str) or not name.endswith(SUFFIX) or "/" in name or not name.isprintable():
            raise ConfigError("weight_map", f"files that end in {SUFFIX}", repr(name)[:60])
        names.add(name)
    return tuple(sorted(names))


def _tensor(name: str, entry: Mapping[str, Any]) -> Tensor:
    """Read a tensor's entry, as strictly as safetensors does when it loads it.

    Raises:
        HeaderError: it does not agree with itself.
    """
    dtype, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
    told = f"{shown(name)} with the type {shown(dtype)}, the shape {shown([*shape])} and bytes {shown([begin, end])}"
    numbers = (*shape, begin, end)
    if dtype not in BITS or not all(type(number) is int and 0 <= number <= MOST_BYTES for number in numbers):
        raise HeaderError(f"{told}, which no file has")
    if 8 * (end - begin) != math.prod(shape) * BITS[dtype]:
        raise HeaderError(f"{told}, which do not agree")
    return Tensor(dtype, shape, end - begin)


def _end(places: Sequence[tuple[int, int, str]]) -> int:
    """Return where the last of a file's tensors ends.

    Args:
        places: where each begins and ends, with its name, in order.

    Raises:
        HeaderError: there is anything between two of them, or they share bytes.
    """
    reached = 0
    for begin, end, name in places:
        if begin != reached:
            raise HeaderError(f"{shown(name)} at byte {begin}, where the one before it ends at {reached}")
        reached = end
    return reached
