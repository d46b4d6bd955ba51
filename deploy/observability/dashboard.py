"""Write the Grafana dashboard: `python -m deploy.observability.dashboard` (a development environment is enough).

Import `dashboard.json` in Grafana, or provision it. A test compares every name in it with those that `/metrics` emits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from string import ascii_uppercase

from grafana_foundation_sdk.builders.common import ReduceDataOptions
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable, Row
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PLACE = Path(__file__).with_name("dashboard.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
# Servers that are looked at: all, or those that the variable at the top names.
OF = '{instance=~"$instance"}'

Panel = Stat | Table | Timeseries


def of(*labels: str) -> str:
    """A selector of the chosen servers and more labels."""
    return "{" + ", ".join(['instance=~"$instance"', *labels]) + "}"


def query(expression: str, legend: str = "", *, instant: bool = False) -> Dataquery:
    """One query of a panel."""
    made = Dataquery().expr(expression).legend_format(legend or "{{instance}}")
    return made.instant() if instant else made


def quantiles(metric: str, *chosen: float) -> list[Dataquery]:
    """Quantiles of a histogram over all chosen servers."""
    return [
        query(f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{OF}[$__rate_interval])))", f"p{q * 100:g}")
        for q in chosen
    ]


def lines(title: str, about: str, unit: str, *queries: Dataquery, width: int = 8, stacked: bool = False) -> Timeseries:
    """A panel of lines."""
    panel = Timeseries().title(title).description(about).unit(unit).datasource(SOURCE).height(8).span(width).min(0)
    if stacked:
        panel = panel.fill_opacity(30)
    for letter, one in zip(ascii_uppercase, queries, strict=False):
        panel = panel.with_target(one.ref_id(letter))
    return panel


def figure(title: str, about: str, unit: str, expression: str, *, width: int = 4) -> Stat:
    """A panel of one number."""
    panel = Stat().title(title).description(about).unit(unit).datasource(SOURCE).height(4).span(width)
    panel = panel.reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.with_target(query(expression, instant=True).ref_id("A"))


def served() -> Table:
    """Which runtime serves which artifact."""
    panel = (
        Table().title("Served").description("Runtime and artifact of each server").datasource(SOURCE).height(4).span(24)
    )
    joined = f"yap_artifact_info{OF} * on (instance) group_left (version, lane) yap_build_info{OF}"
    return panel.with_target(query(joined, instant=True).format(PromQueryFormat.TABLE).ref_id("A"))


def rows() -> dict[str, list[Panel]]:
    """Every row's panels."""
    turns = f"sum by (outcome) (rate(yap_turns_total{OF}[$__rate_interval]))"
    tokens = f"sum by (kind) (rate(yap_tokens_total{OF}[$__rate_interval]))"
    failed = of('outcome=~"failed|timeout"')
    cached, prompt, completion = (of(f'kind="{kind}"') for kind in ("cached", "prompt", "completion"))
    return {
        "At a glance": [
            figure("Servers up", "Servers whose engine answers", "none", f"sum(yap_engine_up{OF})"),
            figure(
                "Conversations",
                "Open connections of all slots",
                "percentunit",
                f"sum(yap_connections_active{OF}) / sum(yap_connections_max{OF})",
            ),
            figure(
                "First token, p95",
                "Start to first spoken token, last 5 minutes",
                "s",
                f"histogram_quantile(0.95, sum by (le) (rate(yap_ttft_seconds_bucket{OF}[5m])))",
            ),
            figure(
                "Failed turns",
                "Part of the turns of the last 5 minutes that failed or timed out",
                "percentunit",
                f"sum(rate(yap_turns_total{failed}[5m])) / clamp_min(sum(rate(yap_turns_total{OF}[5m])), 1e-9)",
            ),
            figure(
                "KV cache", "Used part, of the fullest server", "percentunit", f"max(yap_engine_kv_cache_usage{OF})"
            ),
            figure("Sessions", "Sessions that are kept", "none", f"sum(yap_sessions{OF})"),
            served(),
        ],
        "What a listener notices": [
            lines("First token", "Start to first spoken token", "s", *quantiles("yap_ttft_seconds", 0.5, 0.95, 0.99)),
            lines("Between tokens", "Time between tokens", "s", *quantiles("yap_inter_token_seconds", 0.5, 0.95, 0.99)),
            lines("Turns", "Turns that ended, by outcome", "reqps", query(turns, "{{outcome}}"), stacked=True),
        ],
        "What the engine does": [
            lines("Tokens", "Tokens a second: prompt, cached of those, completion", "short", query(tokens, "{{kind}}")),
            lines(
                "Scheduler",
                "Requests that run and that wait",
                "short",
                query(f"sum by (state) (yap_engine_requests{OF})", "{{state}}"),
            ),
            lines("KV cache", "Used part", "percentunit", query(f"yap_engine_kv_cache_usage{OF}")),
            lines(
                "Prefix cache",
                "Part of the prompt tokens that came out of it",
                "percentunit",
                query(
                    f"sum(rate(yap_tokens_total{cached}[$__rate_interval])) / "
                    f"clamp_min(sum(rate(yap_tokens_total{prompt}[$__rate_interval])), 1e-9)",
                    "hits",
                ),
            ),
            lines("Decisions", "The classifier's latency", "s", *quantiles("yap_tool_seconds", 0.5, 0.95)),
            lines(
                "Decisions by answer",
                "Yes, no, and those that were not made",
                "reqps",
                query(f"sum by (status) (rate(yap_tool_decisions_total{OF}[$__rate_interval]))", "{{status}}"),
            ),
        ],
        "Many that are one": [
            lines("Ready", "Whether new conversations belong there", "none", query(f"yap_ready{OF}")),
            lines("Connections of each", "Slots that are held", "short", query(f"yap_connections_active{OF}")),
            lines(
                "Session store",
                "Sessions that were read and written, failures, and takeovers by another server",
                "reqps",
                query(f"sum by (kind) (rate(yap_session_store_operations_total{OF}[$__rate_interval]))", "{{kind}}"),
            ),
            lines(
                "Store answers",
                "0: sessions do not leave their server",
                "none",
                query(f"yap_session_store_up{OF}"),
                width=12,
            ),
            lines(
                "Store behind",
                "Age of the oldest change that is not in it",
                "s",
                query(f"yap_session_store_lag_seconds{OF}"),
                width=12,
            ),
        ],
        "Who is connected": [
            lines(
                "Slots",
                "Held, and all",
                "short",
                query(f"sum(yap_connections_active{OF})", "held"),
                query(f"sum(yap_connections_max{OF})", "all"),
                query(f"sum(yap_slots_free{OF})", "free, of servers that are ready"),
            ),
            lines(
                "Closed connections",
                "By close code",
                "short",
                query(f"sum by (code) (rate(yap_connections_closed_total{OF}[$__rate_interval]))", "{{code}}"),
            ),
            lines(
                "Strangers",
                "Sockets without a slot, and those that were dropped",
                "short",
                query(f"sum(yap_sockets_unadmitted{OF})", "without a slot"),
                query(f"sum by (reason) (rate(yap_sockets_dropped_total{OF}[$__rate_interval]))", "{{reason}}"),
            ),
            lines(
                "By key",
                "Completion tokens a second, by the key's name",
                "short",
                query(f"sum by (key) (rate(yap_key_tokens_total{completion}[$__rate_interval]))", "{{key}}"),
                width=12,
            ),
            lines(
                "Refused by key",
                "Connections and sessions over a key's quota",
                "short",
                query(f"sum by (key) (rate(yap_key_refused_total{OF}[$__rate_interval]))", "{{key}}"),
                width=12,
            ),
        ],
    }


def dashboard() -> Dashboard:
    """Make the dashboard."""
    instance = (
        QueryVariable("instance").label("Server").query("label_values(yap_engine_up, instance)").datasource(SOURCE)
    )
    instance = instance.refresh(VariableRefresh.ON_DASHBOARD_LOAD)
    made = (
        Dashboard("Yap Text Inference")
        .uid("yap-text-inference")
        .tags(["yap"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .with_variable(DatasourceVariable("source").label("Prometheus").type("prometheus"))
        .with_variable(instance.multi(True).include_all(True).all_value(".*"))
    )
    for title, panels in rows().items():
        made = made.with_row(Row(title))
        for panel in panels:
            made = made.with_panel(panel)
    return made


def text() -> str:
    """The dashboard as Grafana reads it."""
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard().build()) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description="Write the dashboard.").parse_args()
    PLACE.write_text(text(), "utf-8")
