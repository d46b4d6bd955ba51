"""`docs/protocol.md` says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from runtime.deployment.metrics import Metrics
from runtime.deployment.settings import RuntimeSettings
from runtime.text.sanitizer.rules import RULES
from runtime.wire import frames
from runtime.wire.decoder import Decoder
from runtime.wire.messages import DEFAULT_BOUNDS
from tests.harness.scripted import settings

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "protocol.md").read_text("utf-8")


def cell(text: str) -> str:
    """A text as a table's cell: as code, with its line breaks and bars shown."""
    text = text.replace("\n", "\\n").replace("|", "\\|")
    fence = "``" if "`" in text else "`"
    pad = " " if text[:1] in " `" or text[-1:] in " `" else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else "(nothing)"


def rules_table() -> str:
    """The sanitizer's rules as the page shows them."""
    rows = ["| rule | what happens | before | after |", "|---|---|---|---|"]
    rows += [
        f"| {rule.name} | {rule.description.replace('|', chr(92) + '|')} | {cell(rule.before)} | {cell(rule.after)} |"
        for rule in RULES
    ]
    return "\n".join(rows) + "\n"


def test_the_sanitizers_rules_are_the_pages() -> None:
    assert rules_table() in PAGE, rules_table()


def test_every_message_and_every_frame_is_described() -> None:
    for kind in Decoder()._readers:
        assert f"`{kind}`" in PAGE, kind
    for frame in frames.Frame.__subclasses__():
        assert f"| `{frame.__struct_config__.tag}`" in PAGE, frame


def test_ranges_and_defaults_are_the_codes() -> None:
    sampling = settings().sampling(150)
    for name, bound in DEFAULT_BOUNDS.items():
        row = rf"\| `{name}` \| {bound.low:g} – {bound.high:g}[^|]*\| {getattr(sampling, name):g} \|"
        assert re.search(row, PAGE), row


def test_every_variable_on_the_page_exists() -> None:
    known = {name.upper() for name in RuntimeSettings.model_fields}
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", PAGE))
    assert named <= known, named - known


def test_every_metric_is_described() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "operations.md").read_text("utf-8")
    names = re.findall(r"^# TYPE (\w+) (\w+)", Metrics().render().decode(), re.MULTILINE)
    for name, _ in names:
        assert name.endswith("_created") or f"`{name}`" in page, name
