"""Dashboard and alerts name what `/metrics` really emits (metrics, labels, values), and the log's own events."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from runtime.deployment.metrics import Metrics
from runtime.deployment.principal_metrics import PrincipalFigures
from runtime.engines import Load
from runtime.wire.frames import Usage

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/observability"
RULES = FOLDER / "alerts.yaml"
DASHBOARD = FOLDER / "dashboard.json"
# What Prometheus adds to every series, and what its language is made of.
PROMETHEUS = {"instance", "job", "le", "up"}
SELECTOR = re.compile(r"\b([a-z_][a-z0-9_]*)\s*\{([^}]*)\}")


def emitted() -> dict[str, dict[str, set[str]]]:
    """Every series of a server that has done a little of everything: its labels, and their values."""
    metrics = Metrics()
    metrics.serves({"version": "1", "lane": "cpu"}, {"digest": "d", "chat": "c", "method": "m"})
    metrics.principals = lambda: [PrincipalFigures("acme", 1, 1, 1, 1, 1, 1, 1, 1)]
    usage = Usage(
        prompt_tokens=1, cached_tokens=1, completion_tokens=1, finish_reason="stop", ttft_ms=1.0, duration_ms=1.0
    )
    metrics.turn_ended("done", usage, [0.1])
    metrics.engine(up=True, load=Load(1, 1, 0.5))
    found: dict[str, dict[str, set[str]]] = {"up": {"job": {"yap"}}}
    for family in metrics.registry.collect():
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of dashboard and rules, with its place."""
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield f"dashboard, {panel['title']}", target["expr"]
    for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


@pytest.mark.house
@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_names_are_emitted(place: str, expression: str) -> None:
    series = emitted()
    named = set(re.findall(r"\b(?:yap_\w+|up)\b", expression))
    assert named, "an expression without a metric"
    assert named <= series.keys()
    for name, selector in SELECTOR.findall(expression):
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', selector):
            if label in PROMETHEUS and "$" in values:
                continue
            assert set(values.split("|")) <= series[name][label], f"{name}: {label}"
    grouped = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"(?:by|on|group_left) \(([^)]*)\)", expression))))
    labels = PROMETHEUS.union(*(series[name] for name in named))
    assert grouped <= labels


def test_every_legend_names_a_label_of_its_expression() -> None:
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert label == "instance" or label in ", ".join(grouped).split(", ")


def test_the_dashboard_is_as_it_was_written() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="it is made for Python 3.11 and newer")
    from deploy.observability import dashboard

    assert DASHBOARD.read_text("utf-8") == dashboard.text(), "run `python -m deploy.observability.dashboard`"


def test_panels_do_not_overlap_and_their_queries_have_letters() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        letters = [target["refId"] for target in panel.get("targets", ())]
        assert letters == sorted(set(letters))
        assert "" not in letters


@pytest.mark.house
def test_advice_names_what_exists() -> None:
    """Variables, log events, metrics and pages in what an alert says to do next."""
    rules = [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
    settings = (ROOT / "docs/environment.md").read_text("utf-8")
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "runtime").rglob("*.py"))
    for rule in rules:
        advice = rule["annotations"]["next"]
        assert all(f"`{name}`" in settings for name in re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b", advice))
        assert all(f'"{event}"' in source for event in re.findall(r"`([a-z_]+)`", advice))
        assert all(name in emitted() for name in re.findall(r"\byap_\w+", advice))
        assert all((ROOT / page).is_file() for page in re.findall(r"docs/\w+\.md", advice))


def test_every_alert_is_tested_firing_and_silent() -> None:
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]}
    cases = yaml.safe_load((FOLDER / "alerts.test.yaml").read_text("utf-8"))["tests"]
    fires = {test["alertname"] for case in cases for test in case["alert_rule_test"] if test["exp_alerts"]}
    silent = {test["alertname"] for case in cases for test in case["alert_rule_test"] if not test["exp_alerts"]}
    assert fires == silent == alerts


def test_the_rules_do_what_their_tests_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here: install Debian's `prometheus`")
    for command in (("check", "rules", "alerts.yaml"), ("test", "rules", "alerts.test.yaml")):
        answer = subprocess.run([promtool, *command], cwd=FOLDER, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stdout + answer.stderr
