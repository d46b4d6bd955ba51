"""The security page names tests that exist, and variables that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtime.deployment.settings import RuntimeSettings
from tests.attack.clients import attacks

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
ROWS = [line.split(" | ") for line in PAGE.split("## Threats")[1].splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| "))
def test_a_threat_names_tests_that_exist(row: list[str]) -> None:
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", row[-1])
    assert named
    for path, function in named:
        assert (ROOT / path).exists(), path
        if function:
            assert re.search(rf"^(async )?def {function}\(", (ROOT / path).read_text("utf-8"), re.M), function


def test_variables_of_the_page_exist() -> None:
    for name in re.findall(r"`([A-Z][A-Z0-9]+_[A-Z0-9_]+)`", PAGE):
        assert name.lower() in RuntimeSettings.model_fields, name


def test_every_client_that_attacks_is_a_threat_of_the_page() -> None:
    # What is tried against a running server is told here too: by the test that tries all of it, and row by row.
    threats = " ".join(row[0] for row in ROWS).lower()
    told = {
        "control": "pings",
        "heads": "headers without end",
        "labels": "labels",
        "messages": "a message that costs",
        "reconnect": "reconnecting",
        "refused": "come and go",
        "requests": "many who ask",
        "sessions": "sessions of many bytes",
        "silence": "silent sockets",
        "slots": "takes all slots",
        "unread": "does not read",
    }
    assert set(told) == set(attacks())
    assert [words for words in told.values() if words not in threats] == []
