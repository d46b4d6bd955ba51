"""The headers of weights, and which files hold them."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from pipeline.checkpoint.config_reader import ConfigError
from pipeline.checkpoint.tensors import (
    BITS,
    HeaderError,
    Tensor,
    chosen_weights,
    header_of,
    read_header,
    tensors_in,
    weights_in,
)


def write(path: Path, **shapes: tuple[int, ...]) -> int:
    entries, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for dimension in shape:
            size *= dimension
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(end))
    return path.stat().st_size


def test_a_header_tells_names_shapes_types_and_the_file_size(tmp_path: Path) -> None:
    size = write(tmp_path / "x.safetensors", a=(2, 3), b=(4,))
    header = header_of(tmp_path / "x.safetensors")
    assert header.tensors == {"a": Tensor("BF16", (2, 3), 12), "b": Tensor("BF16", (4,), 8)}
    assert header.file_size == size
    assert header.tensors["a"].elements == 6


def test_nothing_but_the_header_is_read(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", a=(1000, 1000))
    data = (tmp_path / "x.safetensors").read_bytes()
    asked: list[tuple[int, int]] = []

    def read(begin: int, length: int) -> bytes:
        asked.append((begin, length))
        return data[begin : begin + length]

    read_header(read)
    assert asked == [(0, 8), (8, struct.unpack("<Q", data[:8])[0])]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 10) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a": 1} ',
        struct.pack("<Q", 27) + b'{"a": {"dtype": 1, "b": 2}}',
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
    ],
)
def test_what_is_no_header_is_said(data: bytes) -> None:
    with pytest.raises(HeaderError):
        read_header(lambda begin, length: data[begin : begin + length])


@given(st.binary(max_size=64), st.integers(2, 64))
def test_any_bytes_are_a_header_or_an_error(rest: bytes, length: int) -> None:
    data = struct.pack("<Q", length) + rest
    try:
        told = str(read_header(lambda begin, count: data[begin : begin + count]).tensors)
    except HeaderError as error:
        told = str(error)
    assert "\n" not in told


def entry(dtype: object, shape: object, begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def header_with(entries: dict[str, object], size: int) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


@pytest.mark.parametrize(
    "entries",
    [
        {"a": entry("BF17", [2], 0, 4)},
        {"a": entry("BF16", [3], 0, 4)},
        {"a": entry("BF16", [-2], 0, 4)},
        {"a": entry("BF16", [-2, -1], 0, 4)},
        {"a": entry("BF16", [2.0], 0, 4)},
        {"a": entry("BF16", [True, 2], 0, 4)},
        {"a": entry("BF16", [2], 4, 0)},
        {"a": entry("BF16", [2], 4, 8)},
        {"a": entry("BF16", [2], 0, 4), "b": entry("BF16", [2], 2, 6)},
        {"a": entry("BF16", [2], 0, 4), "b": entry("BF16", [2], 6, 10)},
        {"a": entry("BF16", [1 << 40, 1 << 40], 0, 4)},
        {"a": entry("BF16", [1 << 70], 0, 1 << 71)},
    ],
)
def test_a_header_that_does_not_agree_with_itself_is_said(entries: dict[str, object]) -> None:
    data = header_with(entries, 16)
    with pytest.raises(HeaderError, match=r"'[ab]' (with the type|at byte)"):
        read_header(lambda begin, length: data[begin : begin + length])


NUMBERS = st.integers(-1, 9)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, object]:
    """Tables of a header, most of them right but for one number."""
    found, reached = {}, 0
    for name in draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=3)):
        dtype, shape = draw(st.sampled_from(sorted(BITS))), draw(st.lists(st.integers(0, 4), max_size=2))
        size = math.prod(shape) * BITS[dtype] // 8
        found[name] = entry(dtype, shape, reached, reached + size)
        reached += size
    for name in draw(st.lists(st.sampled_from(sorted(found)), max_size=1)) if found else []:
        found[name] |= draw(
            st.fixed_dictionaries(
                {}, optional={"shape": st.lists(NUMBERS, max_size=2), "data_offsets": st.tuples(NUMBERS, NUMBERS)}
            )
        )
    return found


@given(tables())
@settings(deadline=None)
def test_headers_are_taken_as_safetensors_takes_them(entries: dict[str, object]) -> None:
    ends = [end for table in entries.values() for end in table["data_offsets"] if end > 0]  # type: ignore[index]
    data = header_with(entries, max(ends, default=0))
    try:
        deserialize(data)
        right = True
    except SafetensorError:
        right = False
    try:
        found = read_header(lambda begin, length: data[begin : begin + length])
        assert right == (found.file_size == len(data)), "taken, and not by safetensors"
    except HeaderError:
        assert not right


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("names", "index", "chosen"),
    [
        (["model.safetensors"], None, ["model.safetensors"]),
        # The same weights twice, as Mistral publishes them.
        (["consolidated.safetensors", *SHARDS], {"a": SHARDS[0], "b": SHARDS[1]}, list(SHARDS)),
        (["consolidated.safetensors", "model.safetensors"], None, ["model.safetensors"]),
        (["consolidated-00001-of-00002.safetensors", *SHARDS], None, list(SHARDS)),
        # Another precision, another program's copy, an adapter.
        (["model.safetensors", "model.fp16.safetensors"], None, ["model.safetensors"]),
        (["model.safetensors", "original/model.safetensors", "onnx/model.safetensors"], None, ["model.safetensors"]),
        (["adapter_model.safetensors", "weights.safetensors"], None, ["weights.safetensors"]),
        (["pytorch_model.bin", "model.safetensors"], None, ["model.safetensors"]),
        # Nothing else is there.
        (["consolidated.safetensors"], None, ["consolidated.safetensors"]),
        (["gptq_model-4bit-128g.safetensors"], None, ["gptq_model-4bit-128g.safetensors"]),
        (["pytorch_model.bin"], None, []),
    ],
)
def test_weights_are_taken_once(names: list[str], index: dict[str, str] | None, chosen: list[str]) -> None:
    assert list(chosen_weights(names, {"weight_map": index} if index else None)) == chosen


NO_TABLES = [None, {}, [], "x", {"a": 1}, {"a": None}, {"a": "../x.safetensors"}, {"a": "x.bin"}]


@pytest.mark.parametrize("table", [*NO_TABLES, {"a": "a\nb.safetensors"}])
def test_an_index_that_names_no_files_is_an_error(table: object) -> None:
    with pytest.raises(ConfigError, match="weight_map"):
        chosen_weights(["model.safetensors"], {"weight_map": table})


def test_a_folder_is_read_by_its_index(tmp_path: Path) -> None:
    write(tmp_path / SHARDS[0], a=(2, 2))
    write(tmp_path / SHARDS[1], b=(2, 2))
    write(tmp_path / "consolidated.safetensors", c=(2, 2))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}))
    assert weights_in(tmp_path) == SHARDS
    assert set(tensors_in(tmp_path)) == {"a", "b"}
    (tmp_path / SHARDS[0]).write_bytes(b"short")
    with pytest.raises(HeaderError, match=SHARDS[0]):
        tensors_in(tmp_path)
