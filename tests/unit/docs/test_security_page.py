"""The security page names tests that exist, and variables that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtime.deployment.settings import RuntimeSettings

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
ROWS = [line.split(" | ") for line in PAGE.split("## Threats")[1].splitlines() if line.startswith("| ")][2:]


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
