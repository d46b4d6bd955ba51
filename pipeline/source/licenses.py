"""Licences: what a model card says of one, and whether the hub knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What a card's front matter says of a licence.
FIELDS = ("license", "license_name", "license_link")
OTHER, UNKNOWN = "other", "unknown"
# What the hub takes as `license` in a card, as it lists them under https://huggingface.co/docs/hub/repositories-licenses;
# it refuses a commit whose card says anything else.
HUB_IDS = frozenset(
    [
        "apache-2.0",
        "mit",
        "openrail",
        "bigscience-openrail-m",
        "creativeml-openrail-m",
        "bigscience-bloom-rail-1.0",
        "bigcode-openrail-m",
        "afl-3.0",
        "artistic-2.0",
        "bsl-1.0",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "c-uda",
        "cc",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cdla-sharing-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "wtfpl",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "etalab-2.0",
        "eupl-1.1",
        "eupl-1.2",
        "agpl-3.0",
        "gfdl",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "isc",
        "h-research",
        "intel-research",
        "lppl-1.3c",
        "ms-pl",
        "apple-ascl",
        "apple-amlr",
        "mpl-2.0",
        "odc-by",
        "odbl",
        "openmdw-1.0",
        "openrail++",
        "osl-3.0",
        "postgresql",
        "ofl-1.1",
        "ncsa",
        "unlicense",
        "zlib",
        "pddl",
        "lgpl-lr",
        "deepfloyd-if-license",
        "fair-noncommercial-research-license",
        "llama2",
        "llama3",
        "llama3.1",
        "llama3.2",
        "llama3.3",
        "llama4",
        "grok2-community",
        "gemma",
        "unknown",
        "other",
    ]
)
# A card may hold a whole text, which says nothing on one line.
LICENSE_LENGTH = 120


@dataclass(frozen=True, slots=True)
class License:
    """A licence as a model card names it.

    Attributes:
        text: an id of the hub, several, or free text, on one line; none where the card names none.
        name: of a licence that is `other`.
        link: to that one's text.
    """

    text: str | None = None
    name: str | None = None
    link: str | None = None


def hub_id(text: str | None) -> str | None:
    """Return the hub's id of a licence, as which a card may name it; none where it is not one of them.

    >>> hub_id("Apache-2.0"), hub_id("Apache License 2.0")
    ('apache-2.0', None)
    """
    name = (text or "").strip().lower()
    return name if name in HUB_IDS else None


def read(card: Mapping[str, Any], page: str | None = None) -> License:
    """Read the licence in a card's front matter.

    Args:
        card: the front matter.
        page: the address of the repository's files, for a link to one of them; none where there is no such address.
    """
    link = one_line(card.get("license_link"))
    if link and "://" not in link:
        link = f"{page}/{link.removeprefix('./')}" if page else None
    return License(one_line(card.get("license")), one_line(card.get("license_name")), link)


def one_line(stated: object) -> str | None:
    """Return what a card states on one line: a word, several of a list, or a text.

    >>> one_line(["mit", "apache-2.0"]), one_line("A text\\n of two lines"), one_line({"a": 1})
    ('mit, apache-2.0', 'A text of two lines', None)
    """
    listed = stated if isinstance(stated, list) else [stated]
    names = [" ".join(str(name).split()) for name in listed if isinstance(name, str | int | float) and name]
    text = "".join(letter for letter in ", ".join(name for name in names if name) if letter.isprintable())
    return f"{text[:LICENSE_LENGTH]}…" if len(text) > LICENSE_LENGTH else text or None
