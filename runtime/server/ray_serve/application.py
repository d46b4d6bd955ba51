"""What Ray Serve is to run: `serve run runtime.server.ray_serve.application:build`, or `deploy/ray/serve.yaml`.

The settings are the server's own, out of the environment that the replicas get too; what Ray must know beside them are
arguments. All that has to agree with the server is derived from its settings: slots, times, GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime import artifact
from runtime.artifact import verify
from runtime.artifact.lanes import lane_of
from runtime.artifact.repository import named_on_hub
from runtime.deployment.settings import RuntimeSettings, SettingsError
from runtime.deployment.settings import load as load_settings
from runtime.server.process import SHUTDOWN_TIMEOUT_S
from runtime.server.ray_serve.replica import Replica
from runtime.server.ray_serve.scaling import ByTurns
from runtime.server.service import CLOSE_GRACE_S

if TYPE_CHECKING:
    from ray.serve import Application

ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
# Ray looks so often whether the last request of a replica that leaves has ended.
WAIT_LOOP_S = 0.5
# Ray's own steps between its decision and ours.
MARGIN_S = 5.0
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 2.0, 10.0


class Arguments(BaseModel):
    """What Ray must know of a deployment beside the settings; `serve run … name=value`, or `args` of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpus: int | None = Field(None, ge=0, description="GPUs of a replica; those that the artifact was built for")
    cpus: float = Field(2.0, gt=0, description="cores of a replica that Ray reserves")
    replicas: int = Field(1, ge=1, description="replicas; the fewest, where there may be more")
    most_replicas: int | None = Field(None, ge=1, description="the most; unset: as many as `replicas`, always")
    turns: float = Field(64.0, gt=0, description="turns in a replica's engine above which another replica is wanted")
    upscale_delay_s: float = Field(10.0, ge=0, description="how long more replicas must be wanted")
    downscale_delay_s: float = Field(600.0, ge=0, description="how long fewer must be: a listener is moved each time")
    look_back_s: float = Field(30.0, gt=0, description="figures are means over so long")


def build(arguments: Mapping[str, object]) -> Application:
    """Make the application of the environment's settings. Ray wants a builder of one parameter.

    Raises:
        SettingsError: settings or arguments are wrong; a line for each problem.
    """
    return build_of(Replica, arguments)


def build_of(replica: type[Replica], arguments: Mapping[str, object]) -> Application:
    """Make the application of replicas of some kind.

    Raises:
        SettingsError: as `build`.
    """
    from ray import serve

    settings = load_settings()
    try:
        wanted = Arguments.model_validate(dict(arguments))
    except ValidationError as error:
        raise SettingsError(
            [f"{'.'.join(map(str, one['loc']))}: {one['msg']}, found {one['input']!r}" for one in error.errors()]
        ) from None
    deployment: Any = serve.deployment(serve.ingress()(replica))
    application: Application = deployment.options(name="runtime", **options(settings, wanted)).bind()
    return application


def options(settings: RuntimeSettings, wanted: Arguments) -> dict[str, object]:
    """The options of the deployment, by Ray's names.

    Raises:
        SettingsError: more replicas are asked for at least than at most, or the GPUs of a replica are not known.
    """
    most = wanted.most_replicas
    if most is not None and most < wanted.replicas:
        raise SettingsError([f"most_replicas: expected at least replicas, {wanted.replicas}, found {most}"])
    gpus = wanted.gpus if wanted.gpus is not None else _gpus(settings)
    found: dict[str, object] = {
        # An open socket holds one of these. Who finds none free waits at the proxy, as many as there are slots.
        "max_ongoing_requests": settings.max_concurrent_connections,
        "max_queued_requests": settings.max_concurrent_connections,
        "request_router_config": {"request_router_class": ROUTER},
        "ray_actor_options": {"num_cpus": wanted.cpus, "num_gpus": gpus},
        "graceful_shutdown_wait_loop_s": WAIT_LOOP_S,
        # Ray kills the replica then: the turns end before, and what was started is stopped.
        "graceful_shutdown_timeout_s": settings.drain_timeout_s + CLOSE_GRACE_S + SHUTDOWN_TIMEOUT_S + MARGIN_S,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
    }
    if gpus > 1:  # in one bundle: the ranks are processes of the replica, and Ray shows it the GPUs of its own bundle
        found["placement_group_bundles"] = [{"CPU": wanted.cpus, "GPU": float(gpus)}]
        found["placement_group_strategy"] = "STRICT_PACK"
    if most is None or most == wanted.replicas:
        return {**found, "num_replicas": wanted.replicas}
    return {
        **found,
        "num_replicas": "auto",
        "autoscaling_config": {
            "min_replicas": wanted.replicas,
            "max_replicas": most,
            "upscale_delay_s": wanted.upscale_delay_s,
            "downscale_delay_s": wanted.downscale_delay_s,
            "look_back_period_s": wanted.look_back_s,
            "policy": {
                "policy_function": f"{ByTurns.__module__}:{ByTurns.__name__}",
                "policy_kwargs": {"turns": wanted.turns},
            },
        },
    }


def _gpus(settings: RuntimeSettings) -> int:
    """GPUs that a replica needs: the artifact says it, and the settings where they say otherwise."""
    name = settings.artifact or ""
    if named_on_hub(name):
        raise SettingsError([f"gpus: expected a number, since the artifact {name} is named on the hub, found none"])
    metadata = artifact.read(Path(name))
    if not lane_of(metadata).on_gpu:
        return 0
    if metadata.chat is None:
        return 1
    return verify.Sharing(settings.tensor_parallel_size, settings.pipeline_parallel_size).of(metadata.chat.limits).gpus
