"""What Ray Serve knows of a replica and tells nobody: names that are not public, held against its version by tests.

Ray takes a replica out of its routers, then waits until its requests have ended, which idle sockets never do. It calls
nothing of the replica's before that wait. So the replica looks at the flag that Ray sets when the wait begins.
"""

from __future__ import annotations

from collections.abc import Callable

VERSION = "2.60"


# Tells whether Ray has begun to take the replica away.
Leaving = Callable[[], bool]


class OtherRayError(RuntimeError):
    """A Ray whose insides are not those that this code knows."""


def leaving() -> Leaving:
    """A function that tells whether Ray has begun to take away the replica of this process.

    Raises:
        OtherRayError: nothing like it is where it was in the Ray that this code knows.
    """
    import ray
    from ray._private.worker import global_worker

    found = [actor._replica_impl for actor in global_worker.actors.values() if hasattr(actor, "_replica_impl")]
    if len(found) != 1 or not isinstance(getattr(found[0], "_shutting_down", None), bool):
        raise _other(ray.__version__, "a replica that says whether it leaves")
    replica = found[0]
    return lambda: bool(replica._shutting_down)


def slots() -> int:
    """The requests, an open socket among them, that Ray gives the replica of this process at once.

    Raises:
        OtherRayError: as `leaving`.
    """
    import ray
    from ray import serve

    config = getattr(serve.get_replica_context(), "_deployment_config", None)
    found = getattr(config, "max_ongoing_requests", None)
    if not isinstance(found, int):
        raise _other(ray.__version__, "a replica's own configuration")
    return found


def _other(version: str, what: str) -> OtherRayError:
    return OtherRayError(
        f"Ray: expected {VERSION}, which has {what}, found {version}; install `ray[serve]=={VERSION}.0`"
    )
