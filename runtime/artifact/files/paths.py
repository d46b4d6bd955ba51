"""The paths of an artifact: one type, for every path that its metadata names.

A path is what a stranger wrote. It must stay inside the artifact, must name the same file on every machine, and must
not be a name that the artifact or its tools use for something else. One that is not so is refused, never repaired.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

METADATA_NAME = "build_metadata.json"
SIGNATURE_NAME = "model.sig"
CARD_NAME = "README.md"

# Not part of the digest, at the artifact's root alone: the metadata holds the digest itself, the card is prose derived
# from the metadata which people edit on the hub, the signature signs the digest. The last ones are what a killed writer
# of ours leaves.
UNLISTED_NAMES = frozenset(
    {
        METADATA_NAME,
        CARD_NAME,
        SIGNATURE_NAME,
        ".gitattributes",
        f"{METADATA_NAME}.partial",
        f"{SIGNATURE_NAME}.partial",
    }
)
# Folders that hub clients and git leave at the root. Nobody looks inside, and nothing is loaded from there.
BOOKKEEPING_FOLDERS = frozenset({".cache", ".git"})

_OWN_NAMES = frozenset(name.casefold() for name in UNLISTED_NAMES)

MAX_PATH_BYTES = 1024
# What file systems allow.
MAX_NAME_BYTES = 255

# What a path may not hold on some machine that an artifact passes through, beside what is not printed.
FORBIDDEN = frozenset('\\:*?"<>|')
# Names that are devices on Windows, whatever follows the first dot.
DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10))})


def path_problem(path: str) -> str | None:
    """Why a path may not be an artifact's; none when it may.

    >>> path_problem("tool/model.safetensors")
    >>> path_problem("../model.safetensors")
    'a step out of it'
    """
    if not path:
        return "an empty one"
    if any(not character.isprintable() for character in path):
        return "characters that are not printed"
    if bad := sorted(FORBIDDEN & set(path)):
        return f"the character {bad[0]}"
    if unicodedata.normalize("NFC", path) != path:
        return "letters that are not in Unicode's composed form (NFC)"
    if len(path.encode()) > MAX_PATH_BYTES:
        return f"more than {MAX_PATH_BYTES} bytes"
    if path.startswith("/"):
        return "an absolute one"
    parts = path.split("/")
    if ".." in parts:
        return "a step out of it"
    if parts[0].casefold() in _OWN_NAMES:
        return f"the name {parts[0]}, which is the artifact's own"
    return next((problem for part in parts if (problem := _name_problem(part))), None)


def _name_problem(name: str) -> str | None:
    if name in {"", "."}:
        return "an empty part"
    if name.startswith("."):
        return f"the hidden name {name}"
    if name.casefold().endswith(".partial"):
        return f"the name {name}, which is one of an unfinished file"
    if name.endswith((".", " ")) or name.startswith(" "):
        return "a part that begins or ends with a space or a dot"
    if name.partition(".")[0].casefold() in DEVICES:
        return f"the name {name}, which is a device on some machines"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"a part of more than {MAX_NAME_BYTES} bytes"
    return None


def _inside(path: str) -> str:
    if problem := path_problem(path):
        shown = path if len(path) <= MAX_NAME_BYTES else f"{path[:MAX_NAME_BYTES]}…"
        raise ValueError(
            f"a path must stay inside the artifact and mean the same everywhere; found {shown!r}, {problem}"
        )
    return path


# A POSIX path relative to the artifact, checked.
ArtifactPath = Annotated[str, AfterValidator(_inside)]


def listing_problem(paths: Iterable[str]) -> str | None:
    """Why checked paths cannot lie in one folder everywhere; none when they can.

    Two of them may not be the same, nor differ in the case of letters alone, nor may a file be another one's folder.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        key = path.casefold()
        if key in files:
            same = files[key] == path
            return f"lists a file twice: {path}" if same else f"lists {files[key]} and {path}, the same name for some"
        files[key] = path
        parent = path
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if (other := folders.setdefault(parent.casefold(), parent)) != parent:
                return f"lists files in {other} and {parent}, the same name for some"
    if both := sorted(files.keys() & folders.keys()):
        return f"lists {files[both[0]]} both as a file and as a folder"
    return None


def lies_in(path: str, folder: str) -> bool:
    """Whether a file's path lies in a folder of the artifact.

    >>> lies_in("tool/config.json", "tool"), lies_in("tools.json", "tool")
    (True, False)
    """
    return path.startswith(f"{folder}/")
