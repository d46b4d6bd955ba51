"""What Ray is told to run agrees with the server's own settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from runtime.deployment.settings import RuntimeSettings, SettingsError, load
from runtime.server.process import SHUTDOWN_TIMEOUT_S
from runtime.server.ray_serve.application import Arguments, options
from runtime.server.ray_serve.replica import ReplicaError, check
from runtime.server.service import CLOSE_GRACE_S
from tests.hub.golden import GOLDEN


def settings(**values: str) -> RuntimeSettings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ARTIFACT": "/nowhere", "TEXT_API_KEY": "k" * 20, **values}.items():
            patch.setenv(name, value)
        return load()


@given(slots=st.integers(1, 2000), drain=st.integers(1, 600))
def test_slots_and_times_are_the_servers(slots: int, drain: int) -> None:
    chosen = settings(MAX_CONCURRENT_CONNECTIONS=str(slots), DRAIN_TIMEOUT_S=str(drain))
    found = options(chosen, Arguments(gpus=1))
    assert found["max_ongoing_requests"] == slots
    # Turns end, and what was started is stopped, before Ray kills the replica.
    timeout = found["graceful_shutdown_timeout_s"]
    assert isinstance(timeout, float)
    assert timeout > drain + CLOSE_GRACE_S + SHUTDOWN_TIMEOUT_S
    check(chosen, slots)


@given(gpus=st.integers(0, 16), cpus=st.integers(1, 64))
def test_gpus_that_share_a_model_are_one_bundle_that_holds_the_replica(gpus: int, cpus: int) -> None:
    found = options(settings(), Arguments(gpus=gpus, cpus=cpus))
    assert found["ray_actor_options"] == {"num_cpus": cpus, "num_gpus": gpus}
    if gpus > 1:
        assert found["placement_group_bundles"] == [{"CPU": cpus, "GPU": gpus}]
        assert found["placement_group_strategy"] == "STRICT_PACK"
    else:
        assert "placement_group_bundles" not in found


@given(fewest=st.integers(1, 9), more=st.integers(0, 9))
def test_replicas_scale_between_their_bounds_or_not_at_all(fewest: int, more: int) -> None:
    found = options(settings(), Arguments(gpus=1, replicas=fewest, most_replicas=fewest + more, turns=7))
    if not more:
        assert found["num_replicas"] == fewest
        assert "autoscaling_config" not in found
        return
    scaling = found["autoscaling_config"]
    assert isinstance(scaling, dict)
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (fewest, fewest + more)
    assert scaling["policy"]["policy_kwargs"] == {"turns": 7}


def test_the_most_is_no_less_than_the_fewest() -> None:
    with pytest.raises(SettingsError, match="most_replicas: expected at least replicas, 3, found 2"):
        options(settings(), Arguments(gpus=1, replicas=3, most_replicas=2))


def test_gpus_of_an_artifact_on_the_hub_must_be_told() -> None:
    with pytest.raises(SettingsError, match=r"gpus: expected a number, since the artifact hf:some/one is named"):
        options(settings(ARTIFACT="hf:some/one"), Arguments())


def test_an_argument_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="gpu"):
        Arguments.model_validate({"gpu": 1})


@pytest.mark.parametrize(
    ("variables", "slots", "line"),
    [
        (
            {},
            5,
            "max_ongoing_requests: expected MAX_CONCURRENT_CONNECTIONS, 64, since an open socket holds one; found 5",
        ),
        ({"ADMIN_PORT": "9000"}, 64, "ADMIN_PORT: expected none, since Ray drains its replicas itself, found 9000"),
    ],
)
def test_what_cannot_be_in_rays_hands_is_one_line(variables: dict[str, str], slots: int, line: str) -> None:
    with pytest.raises(SettingsError) as found:
        check(settings(MAX_CONCURRENT_CONNECTIONS="64", **variables), slots)
    assert str(found.value).startswith(line)
    assert str(ReplicaError(found.value)).startswith(f"exit status 64: {line}")


def test_an_artifact_says_how_many_gpus_it_wants(tmp_path: Path) -> None:
    asked: dict[str, str] = {}

    def wanted() -> object:
        actor = options(settings(ARTIFACT=str(tmp_path), **asked), Arguments())["ray_actor_options"]
        assert isinstance(actor, dict)
        return actor["num_gpus"]

    shutil.copy(GOLDEN / "vllm-fp8/build_metadata.json", tmp_path)
    assert wanted() == 1
    asked["TENSOR_PARALLEL_SIZE"] = "2"
    assert wanted() == 2
    asked["PIPELINE_PARALLEL_SIZE"] = "3"
    assert wanted() == 6
