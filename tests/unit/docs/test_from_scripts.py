"""The page for people who come from the scripts names what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.generated_docs import pages

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "from-scripts.md").read_text(encoding="utf-8")
# What the scripts read and nothing reads now; the page's last paragraph says what took their place.
GONE = {"CHAT_MODEL", "TOOL_MODEL", "DEPLOY_CHAT", "DEPLOY_TOOL", "VLLM_USE_V1"}
KEPT, _, LAST = PAGE.partition("\nGone: ")


def test_every_variable_that_kept_its_name_is_read() -> None:
    known = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", pages()["environment.md"]))
    named = set(re.findall(r"`([A-Z][A-Z0-9_]{3,})`", KEPT)) | set(re.findall(r"-e ([A-Z_]+)=", KEPT))
    assert {"CHAT_MAX_LEN", "AWQ_NSAMPLES"} <= named, "the page is read wrongly"
    assert named - known == set()


def test_every_variable_that_is_gone_is_named() -> None:
    assert set(re.findall(r"`([A-Z]+(?:_[A-Z0-9]+)+)`", LAST)) - {"DEPLOY_MODE"} == GONE
    assert not any(f"| `{name}` |" in pages()["environment.md"] for name in GONE)


@pytest.mark.parametrize(
    "script",
    ["main.sh --vllm", "main.sh --trt", "--push-quant", "restart.sh", "stop.sh", "warmup.sh", "lint.sh", "activate.sh"],
)
def test_every_script_has_its_row(script: str) -> None:
    assert any(script in line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `"))


def test_what_it_points_at_exists() -> None:
    for path in re.findall(r"python (tests/\w+\.py)", PAGE):
        assert (ROOT / path).is_file(), path
    targets = set(re.findall(r"yap/([a-z-]+):dev", PAGE)) | {"pipeline-trt", "runtime-trt"}
    bake = (ROOT / "bake.hcl").read_text(encoding="utf-8")
    for target in targets:
        kind, _, lane = target.partition("-")
        assert f'target "{kind}"' in bake, target
        assert f'"{lane}"' in bake, target


def test_defaults_that_changed_are_as_the_page_says() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\S+) \| (\S+) \|", PAGE.partition("Defaults that changed")[2], re.M)
    assert len(rows) == 2
    for name, was, now in rows:
        assert f"| `{name}` | `{now}` |" in pages()["environment.md"]
        assert was not in (now, {"true": "1", "false": "0"}[now])
