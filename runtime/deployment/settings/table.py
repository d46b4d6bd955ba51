"""The server's variables as a table: for `docs/environment.md`, and for people."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from pydantic.fields import FieldInfo

from runtime.deployment.settings.server import RuntimeSettings


def markdown() -> str:
    """The table of `docs/environment.md`."""
    rows = ["| variable | default | unit | meaning |", "|---|---|---|---|"]
    for name, info in RuntimeSettings.model_fields.items():
        rows.append(f"| `{name.upper()}` | {_default(info)} | {_unit(info)} | {info.description} |")
    return "\n".join(rows) + "\n"


def _default(info: FieldInfo) -> str:
    value = info.default
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _unit(info: FieldInfo) -> str:
    extra = info.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def as_json(settings: RuntimeSettings, wrong: Collection[str] = ()) -> str:
    """Every variable as JSON, with the value that holds; of a secret whether it is set.

    Args:
        settings: what holds.
        wrong: names of fields whose variables are wrong, so that no value does.
    """
    values = settings.model_dump(mode="json")
    found = {
        name.upper(): {
            "value": None if name in wrong else bool(getattr(settings, name)) if _is_secret(info) else values[name],
            "default": _plain(info.default),
            "unit": _unit(info) or None,
            "meaning": info.description,
        }
        for name, info in RuntimeSettings.model_fields.items()
    }
    return json.dumps(found, indent=2, ensure_ascii=False)


def _plain(default: object) -> object:
    return list(default) if isinstance(default, tuple) else str(default) if isinstance(default, Path) else default


def _is_secret(info: FieldInfo) -> bool:
    return "SecretStr" in str(info.annotation)


def show() -> None:
    """Print the variables as a table for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("variable", "default", "unit", "meaning")
    for name, info in RuntimeSettings.model_fields.items():
        row = (name.upper(), _default(info).strip("`"), _unit(info), info.description or "")
        table.add_row(*(escape(cell) for cell in row))  # what stands in brackets is no markup
    Console().print(table)
