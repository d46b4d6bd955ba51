"""`deploy/ray/serve.yaml` agrees with what it starts, and Ray takes it as it is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.deployment.settings import RuntimeSettings
from runtime.server.ray_serve import application, insides
from runtime.server.ray_serve.application import Arguments, options
from runtime.server.session_key import HEADER
from tests.harness.fleet.ray_serve import MISSING, PYTHON, ROOT, shipped
from tests.harness.source.imports import PYTHONS, pins_of

INSIDE = """
import inspect, json, os, sys
import ray
from ray import serve
from ray.serve._private import constants, replica
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.utils import import_attr
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve.context import ReplicaContext
from ray.serve.schema import ServeDeploySchema

config = ServeDeploySchema.model_validate(json.loads(sys.stdin.read()))
(one,) = config.applications
os.environ.update(one.runtime_env["env_vars"], ARTIFACT="/nowhere", TEXT_API_KEY="k" * 20)
for name in ("TEXT_API_KEY_FILE", "SESSION_STORE_PASSWORD_FILE", "ARTIFACT_PUBLIC_KEY_FILE"):
    os.environ.pop(name)
build = import_attr(one.import_path)
made = call_user_app_builder_with_args_if_necessary(build, {**one.args, "gpus": 2})._bound_deployment
found = made._deployment_config
policy = found.autoscaling_config.policy
print(json.dumps({
    "version": ray.__version__,
    "name": made.name,
    "slots": found.max_ongoing_requests,
    "router": found.request_router_config.get_request_router_class().__name__,
    "policy": repr(_resolve_policy_callable(policy).__class__.__name__),
    "bundles": made._replica_config.placement_group_bundles,
    "header": constants.SERVE_SESSION_ID,
    "leaving": "self._shutting_down = True" in inspect.getsource(replica.Replica._perform_graceful_shutdown),
    "impl": "self._replica_impl" in inspect.getsource(replica.ReplicaActor.__init__),
    "config": "_deployment_config" in ReplicaContext.__annotations__,
}))
"""


def the_application() -> dict[str, Any]:
    (found,) = shipped()["applications"]
    assert isinstance(found, dict)
    return found


def test_it_names_what_there_is() -> None:
    found = the_application()
    module, _, name = found["import_path"].partition(":")
    assert (module, name) == (application.__name__, application.build.__name__)
    assert Arguments.model_validate(found["args"]).gpus is not None
    (deployment,) = found["deployments"]
    assert deployment["name"] == "runtime"
    derived = options(RuntimeSettings.model_construct(), Arguments(gpus=2, most_replicas=2))
    assert not deployment.keys() & derived.keys(), "what must agree with the settings is derived from them"


def test_its_variables_are_settings() -> None:
    variables = the_application()["runtime_env"]["env_vars"]
    known = {name.upper() for name in RuntimeSettings.model_fields}
    assert variables.keys() <= known
    assert all(isinstance(value, str) for value in variables.values()), "Ray takes texts alone"


@pytest.mark.parametrize("python", PYTHONS)
def test_its_lock_fits_beside_the_engine(python: str) -> None:
    """`install.sh .venv-ray vllm ray .` installs both: no package may be pinned to two versions."""
    engine, ray = ({pin.name: pin.version for pin in pins_of(name) if pin.fits(python)} for name in ("vllm", "ray"))
    both = engine.keys() & ray.keys()
    assert len(both) > 50
    assert {name: engine[name] for name in both} == {name: ray[name] for name in both}


@pytest.mark.skipif(not PYTHON.exists(), reason=MISSING)
@pytest.mark.timeout(300)
def test_ray_takes_it_and_has_inside_what_we_look_at() -> None:
    done = subprocess.run(
        [PYTHON, "-c", INSIDE],
        input=json.dumps(yaml.safe_load(Path("deploy/ray/serve.yaml").read_text("utf-8"))),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("version").startswith(f"{insides.VERSION}.")
    assert found == {
        "name": "runtime",
        "slots": int(the_application()["runtime_env"]["env_vars"]["MAX_CONCURRENT_CONNECTIONS"]),
        "router": "ConsistentHashRouter",
        "policy": "'ByTurns'",
        "bundles": [{"CPU": the_application()["args"]["cpus"], "GPU": 2.0}],
        "header": HEADER.lower(),
        "leaving": True,
        "impl": True,
        "config": True,
    }
