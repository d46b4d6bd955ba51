"""Files of a data set: `.txt`, a text a paragraph; `.jsonl`, a row a line; `.json`, an array or rows as in `.jsonl`.

All are UTF-8, with or without its mark at the beginning.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.datasets.rows import Sample, sample_of
from pipeline.stages.stage import StageError

SUFFIXES = (".txt", ".jsonl")
# A calibration set of some hundred texts has a few MiB; what is larger is another file, or a whole corpus.
LARGEST_BYTES = 1 << 30
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

# A row as JSON holds it, and where it stands; or why it is none.
Parsed = tuple[object, str] | StageError


def read_file(path: Path, odd: list[StageError] | None = None) -> list[Sample]:
    """Read the rows of a `.txt` file, one a paragraph, or of a `.jsonl` or `.json` file.

    Args:
        path: the file.
        odd: gets what is wrong with each row that was left out; none raises what is wrong with a line.

    Raises:
        StageError: it cannot be read, or holds no row in a known form.
    """
    return samples_in(read_text(path), path, odd)


def read_text(path: Path, most: int | None = None) -> str:
    """Read a text file, its line ends as one line feed each.

    Args:
        path: the file.
        most: reads so many bytes at most, up to the last whole line.

    Raises:
        StageError: it is no file, too large, or not UTF-8.
    """
    try:
        # A pipe would be waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise StageError("calibration", "expected a file of text, found something else", path, "name a file")
            if status.st_size > LARGEST_BYTES:
                found = f"expected {LARGEST_BYTES >> 20:,} MiB at most, found {status.st_size >> 20:,}"
                raise StageError("calibration", found, path, "take a part of it")
            content = file.read() if most is None else file.read(most)
    except (OSError, ValueError) as error:
        raise StageError("calibration", f"expected UTF-8 text, found {error}", path, "name another file") from error
    if most is not None and len(content) == most:
        content = content[: content.rfind(b"\n") + 1]
    if content.startswith(UTF_16):
        raise StageError("calibration", "expected UTF-8 text, found UTF-16", path, _conversion("UTF-16", path))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"expected UTF-8 text, found the byte 0x{content[error.start]:02x} at {error.start}"
        raise StageError("calibration", what, path, _conversion("ISO-8859-1", path)) from error
    if (at := text.find("\0")) >= 0:
        what = f"expected UTF-8 text, found a NUL at {at}, as UTF-16 and binary files have them"
        raise StageError("calibration", what, path, "convert the file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def samples_in(text: str, path: Path, odd: list[StageError] | None = None) -> list[Sample]:
    """Return the samples in a file's text; `path` tells its form.

    Raises:
        StageError: as for `read_file`.
    """
    if path.suffix == ".txt":
        return [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
    if path.suffix == ".json" and text.lstrip().startswith("["):
        return _samples(_array(text, path), odd)
    # Only a line feed ends a row: a text may hold other characters that end lines.
    return samples_in_lines(text.split("\n"), path, odd)


def samples_in_lines(lines: Iterable[str], path: Path, odd: list[StageError] | None) -> list[Sample]:
    """Return the samples in lines of JSON.

    Raises:
        StageError: as for `read_file`.
    """
    return _samples(_parsed(lines, path), odd)


def _parsed(lines: Iterable[str], path: Path) -> Iterator[Parsed]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line), f"{path}:{number}"
            except (ValueError, RecursionError) as error:
                found = f"expected a JSON object in each line, found {error}"
                yield StageError("calibration", found, f"{path}:{number}", "mend or remove the line")


def _array(text: str, path: Path) -> Iterator[Parsed]:
    try:
        rows: Sequence[object] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StageError("calibration", f"expected a JSON array, found {error}", path, "mend the file") from error
    yield from ((row, f"{path}[{number}]") for number, row in enumerate(rows))


def _samples(rows: Iterable[Parsed], odd: list[StageError] | None) -> list[Sample]:
    """The samples in rows; those in no known form are left out, unless all are."""
    left_out: list[StageError] = []
    samples: list[Sample] = []
    for parsed in rows:
        if isinstance(parsed, StageError):
            if odd is None:
                raise parsed
            left_out.append(parsed)
            continue
        try:
            samples.append(sample_of(*parsed))
        except StageError as error:
            left_out.append(error)
    if left_out and not samples:
        raise left_out[0]
    if odd is not None:
        odd += left_out
    return samples


def _conversion(encoding: str, path: Path) -> str:
    return f"convert the file, such as by `iconv -f {encoding} -t UTF-8 {path.name}`"
