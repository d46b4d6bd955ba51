"""The headers of a model's weights on the hub, read by range: eight bytes of each file, then its header."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pipeline.checkpoint.tensors import Header, HeaderError, read_header
from runtime.artifact import hub, hub_client
from runtime.artifact.repository import Reference, RepositoryReader

# Files that are read at once; each takes two short requests.
AT_ONCE = 8
TRIES = 3
PARTIAL_CONTENT = 206


def read_headers(reference: Reference, commit: str, names: Sequence[str]) -> list[Header | HeaderError]:
    """Read the headers of several files of a repository, in their order; what is no header is returned as its error.

    Raises:
        HfHubHTTPError, or what `hub_client.failures` lists: the hub refused, or is out of reach.
    """
    from huggingface_hub import HfApi

    reader = RepositoryReader(HfApi(token=hub.revealed(hub.token_of(os.environ))), reference, commit)
    with ThreadPoolExecutor(max_workers=min(AT_ONCE, len(names) or 1), thread_name_prefix="headers") as pool:
        return list(pool.map(partial(_read, reader), names))


def _read(reader: RepositoryReader, name: str) -> Header | HeaderError:
    try:
        return read_header(partial(_part, reader, name))
    except HeaderError as error:
        return error


def _part(reader: RepositoryReader, name: str, begin: int, length: int) -> bytes:
    """Read a part of a file; a server that knows no ranges sends the whole, of which the rest is not read."""
    asked = {**reader.headers(), "Range": f"bytes={begin}-{begin + length - 1}"}

    def once() -> bytes:
        with hub_client.stream(reader.url(name), asked) as answer:
            if answer.status == hub_client.RANGE_NOT_SATISFIABLE:
                return b""
            skipped = 0 if answer.status == PARTIAL_CONTENT else begin
            found = bytearray()
            for block in answer.blocks:
                found += block
                if len(found) >= skipped + length:
                    break
            return bytes(found[skipped : skipped + length])

    return hub.with_retries(once, lambda _: None, tries=TRIES)
