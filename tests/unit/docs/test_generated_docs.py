"""The pages that are generated say what the classes say."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipeline.generated_docs import DOCS, pages
from pipeline.settings import PipelineSettings
from runtime.artifact.lanes import SERVED_LANES
from runtime.deployment.settings import RuntimeSettings
from runtime.wire.messages import DEFAULT_BOUNDS
from tests.harness.source.house import HOUSES, ROOT

ARTIFACTS = Path(__file__).resolve().parents[2] / "data" / "artifacts"


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_generated_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == pages()[name], "run `python -m pipeline.generated_docs`"


@pytest.mark.parametrize("folder", sorted(path.name for path in ARTIFACTS.iterdir()))
def test_the_schema_accepts_the_golden_artifacts(folder: str) -> None:
    schema = json.loads(pages()["build_metadata.schema.json"])
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads((ARTIFACTS / folder / "build_metadata.json").read_text())
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | {"surprise": 1}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({key: value for key, value in document.items() if key != "seal"}, schema)


def properties(schema: Any) -> Iterator[str]:
    for definition in (schema, *schema["$defs"].values()):
        yield from definition["properties"]


def test_the_page_on_the_artifact_names_every_field() -> None:
    schema = json.loads(pages()["build_metadata.schema.json"])
    page = (DOCS / "artifact.md").read_text(encoding="utf-8")
    missing = {name for name in properties(schema) if f"`{name}`" not in page and f".{name}`" not in page}
    assert missing == set()


def test_every_variable_is_listed_with_its_default() -> None:
    page = pages()["environment.md"]
    assert all(f"| `{name.upper()}` |" in page for name in PipelineSettings.model_fields)
    assert "| `AWQ_NSAMPLES` | `64` | samples | calibration samples |" in page


@pytest.mark.parametrize("settings", [RuntimeSettings, PipelineSettings])
def test_every_variable_on_the_page_is_read(settings: type[RuntimeSettings] | type[PipelineSettings]) -> None:
    """A variable that nothing reads is a promise on the page alone."""
    nodes = [node for house in HOUSES for path in (ROOT / house).rglob("*.py") for node in ast.walk(parsed(path))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    # The sampling parameters are read by their names, with their bounds.
    read |= {f"chat_{name}{end}" for name in DEFAULT_BOUNDS for end in ("", "_min", "_max")}
    # How many sequences a lane's engine takes is read by the name in the lane's record.
    read |= {lane.batch_setting for lane in SERVED_LANES.values()}
    assert settings.model_fields.keys() - read == set()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))
