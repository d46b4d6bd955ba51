"""The `docker run` commands of a model card, as it prints them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

# What takes a value behind a space; `--rm` takes none.
WITH_VALUE = frozenset({"--gpus", "--shm-size", "-p", "-v", "-e"})


@dataclass(frozen=True)
class DockerRun:
    """A `docker run` command.

    Attributes:
        script: the lines of the block that it stands in, for a shell.
        options: each with its values, in order.
        image: with its tag.
        words: what the container is told.
    """

    script: str
    options: dict[str, list[str]]
    image: str
    words: tuple[str, ...]


def docker_runs(card: str) -> list[DockerRun]:
    """Every `docker run` in a card's blocks of code."""
    found = []
    for block in re.findall(r"^```\n(.*?)^```$", card, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("docker run "):
                found.append(_parsed(block, shlex.split(line)[2:]))
    return found


def _parsed(script: str, words: list[str]) -> DockerRun:
    options: dict[str, list[str]] = {}
    while words and words[0].startswith("-"):
        option = words.pop(0)
        values = options.setdefault(option, [])
        if option in WITH_VALUE:
            values.append(words.pop(0))
    image, *rest = words
    return DockerRun(script, options, image, tuple(rest))
