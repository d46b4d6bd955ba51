"""Ray nodes of one machine with an application on them: `tests.harness.fleet.ray_cluster NODES PORT CPUS API`.

Runs in Ray's own environment, and is told what to do by lines of JSON on standard input; each is answered by one on
standard output. The end of the input is the end of the cluster. `ray_serve` is the other side.

With a port for its API (0: none) the cluster is as `ray start --head` makes one, and `serve deploy` starts Serve on it.
"""

from __future__ import annotations

import json
import os
import sys

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

# What Ray wants at least.
STORE_BYTES = 80 * 2**20
TRIES = 5


def replicas() -> list[dict[str, object]]:
    """The replicas, with their processes and nodes."""
    details = _get_global_client().get_serve_details()
    found = []
    for application in details["applications"].values():
        for deployment in application["deployments"].values():
            for one in deployment["replicas"]:
                state = one["state"]
                found.append(
                    {
                        "id": one["replica_id"],
                        "state": getattr(state, "value", state),
                        "pid": one.get("pid"),
                        "node": one.get("node_id"),
                    }
                )
    return found


def status() -> dict[str, object]:
    """What Ray says of the application."""
    if _get_global_client(raise_if_no_controller_running=False) is None:
        return {"applications": {}, "replicas": []}
    found = serve.status()
    applications = {
        name: {
            "status": one.status.value,
            "message": "\n".join([one.message, *(each.message for each in one.deployments.values())]),
        }
        for name, one in found.applications.items()
    }
    return {"applications": applications, "replicas": replicas()}


def start(nodes: int, cpus: int, api: int) -> Cluster:
    """Start the nodes, the first with an API where it has a port.

    Ray gives each 30 seconds, whatever else the machine does: so it is tried again.
    """
    for left in reversed(range(TRIES)):
        cluster = Cluster()
        try:
            for number in range(nodes):
                of_head = {"include_dashboard": api > 0, "dashboard_port": api or None} if number == 0 else {}
                cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES, **of_head)
        except Exception:
            cluster.shutdown()
            if not left:
                raise
        else:
            return cluster
    raise AssertionError("it was tried at least once")


def main(nodes: int, port: int, cpus: int, api: int) -> None:
    """Run until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints is no answer
    cluster = start(nodes, cpus, api)
    ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
    if not api:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    print("{}", file=answers)
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            if asked["do"] == "deploy":
                _get_global_client().deploy_apps(ServeDeploySchema.model_validate(asked["config"]))
                answer: dict[str, object] = {}
            else:
                answer = status()
            print(json.dumps(answer, default=str), file=answers)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
