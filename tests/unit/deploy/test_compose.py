"""`deploy/compose.yaml` and what it mounts agree with each other and with the server's own defaults."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime import defaults
from runtime.artifact.hub import TOKEN_VARIABLES
from runtime.deployment.settings import RuntimeSettings
from runtime.server.process import SHUTDOWN_TIMEOUT_S
from runtime.server.session_key import COOKIE, HEADER, QUERY

DEPLOY = Path(__file__).parents[3] / "deploy"
FILES = ("compose.yaml", "compose.tensor-parallel.yaml")
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::?([-?+])([^}]*))?\}")


class Loader(yaml.SafeLoader):
    """YAML with the tags that Compose has."""


Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, deep=True))


def compose(name: str = FILES[0]) -> dict[str, Any]:
    loaded = yaml.load((DEPLOY / name).read_text("utf-8"), Loader)  # noqa: S506 - a safe loader with one more tag
    assert isinstance(loaded, dict)
    return loaded


def runtimes(name: str = FILES[0]) -> dict[str, dict[str, Any]]:
    """The services that are runtimes, by their names."""
    return {key: one for key, one in compose(name)["services"].items() if key.startswith("runtime-")}


def devices(service: dict[str, Any]) -> list[str]:
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    return list(device["device_ids"])


def haproxy() -> str:
    return (DEPLOY / "compose/haproxy.cfg").read_text("utf-8")


def seconds(name: str) -> float:
    """A time of the router's configuration."""
    found = re.search(rf"^ *{name} (\d+)(ms|s|m|h)$", haproxy(), re.M)
    assert found, name
    return float(found[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[found[2]]


def test_each_profile_starts_so_many_runtimes_and_no_gpu_is_given_twice() -> None:
    for count in (1, 2, 4, 8):
        started = [one for one in runtimes().values() if "profiles" not in one or f"gpus-{count}" in one["profiles"]]
        gpus = [gpu for one in started for gpu in devices(one)]
        assert sorted(gpus) == [str(number) for number in range(count)]


def test_groups_of_gpus_do_not_overlap_and_the_servers_know_their_size() -> None:
    groups = runtimes(FILES[1])
    gpus = [gpu for one in groups.values() for gpu in devices(one)]
    assert sorted(gpus) == [str(number) for number in range(8)]
    for one in groups.values():
        assert one["environment"]["TENSOR_PARALLEL_SIZE"] == len(devices(one))
    assert groups.keys() <= runtimes().keys()


def test_router_and_prometheus_know_every_runtime_by_name_and_port() -> None:
    servers = dict(re.findall(r"^ *server (\S+) (\S+)", haproxy(), re.M))
    assert servers == {name: f"{name}:{defaults.PORT}" for name in runtimes()}
    numbers = re.findall(r"^ *server runtime-(\d+) \S+ id (\d+)$", haproxy(), re.M)
    assert all(int(number) + 1 == int(place) for number, place in numbers), "a place on the ring of its own, that stays"
    jobs = {
        job["job_name"]: job
        for job in yaml.safe_load((DEPLOY / "compose/prometheus.yaml").read_text())["scrape_configs"]
    }
    (found,) = jobs["yap"]["dns_sd_configs"]
    assert (set(found["names"]), found["port"]) == (set(runtimes()), defaults.PORT)
    assert jobs["router"]["static_configs"] == [{"targets": ["router:8404"]}]
    assert "bind :8404" in haproxy()
    assert compose()["services"]["router"]["ports"] == ["${PUBLISH:-127.0.0.1:8000}:8000"]


def test_the_routers_times_leave_the_ends_of_sockets_to_the_server() -> None:
    for name in ("timeout client", "timeout server", "timeout tunnel"):
        assert seconds(name) > max(defaults.IDLE_TIMEOUT_S, defaults.GENERATION_TIMEOUT_S)
    assert seconds("timeout http-request") <= defaults.HANDSHAKE_DEADLINE_S
    assert "uri /readyz" in haproxy()


def test_a_runtime_has_the_time_that_it_needs_to_leave() -> None:
    drain = RuntimeSettings.model_fields["drain_timeout_s"].default
    for one in runtimes().values():
        assert float(one["stop_grace_period"].removesuffix("s")) > drain + SHUTDOWN_TIMEOUT_S


def test_variables_are_the_servers_own_and_secrets_are_files_that_the_service_has() -> None:
    known = {name.upper() for name in RuntimeSettings.model_fields} | {f"{name}_FILE" for name in TOKEN_VARIABLES}
    for name, service in compose()["services"].items():
        environment = service.get("environment", {})
        if name.startswith("runtime-"):
            assert environment.keys() <= known, environment.keys() - known
        for variable, value in environment.items():
            if (path := re.search(r"/run/secrets/(\w+)", str(value))) is not None:
                assert variable.endswith("_FILE")
                assert path[1] in service["secrets"]
            else:
                assert not re.search(r"KEY$|PASSWORD$|SECRET$|TOKEN$", variable)
    for secret in compose()["secrets"].values():
        assert secret.keys() == {"file"}
    default = VARIABLE.match(compose()["x-runtime"]["environment"]["MAX_CONCURRENT_CONNECTIONS"])
    assert default is not None
    assert default[3] == str(defaults.CONNECTIONS)


def test_one_file_is_to_be_filled_in_and_it_shows_every_variable_with_its_default() -> None:
    text = (DEPLOY / ".env.example").read_text("utf-8")
    shown = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", text, re.M))
    used: dict[str, str] = {}
    for name in FILES:
        for variable, kind, default in VARIABLE.findall((DEPLOY / name).read_text("utf-8")):
            used[variable] = default if kind == "-" else used.get(variable, "")
    assert shown.keys() - {"COMPOSE_PROFILES"} == used.keys()
    assert {name: shown[name] for name in used} == used
    assert "deploy/.env\n" in (DEPLOY.parent / ".gitignore").read_text()


def test_what_is_mounted_is_there_and_nothing_but_the_doors_is_published() -> None:
    for name, service in compose()["services"].items():
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (DEPLOY / volume.partition(":")[0]).exists(), volume
                assert volume.endswith(":ro")
        assert ("ports" in service) == (name in {"router", "grafana"})
        assert ("outside" in service["networks"]) == (name in {"router", "grafana"})
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    source = yaml.safe_load((DEPLOY / "compose/grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert source["datasources"][0]["type"] == "prometheus"
    provider = yaml.safe_load((DEPLOY / "compose/grafana/provisioning/dashboards/yap.yaml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    assert f"./observability/dashboard.json:{folder}/dashboard.json:ro" in compose()["services"]["grafana"]["volumes"]


@pytest.mark.parametrize("profile", ["", "gpus-2", "gpus-4", "gpus-8"])
@pytest.mark.parametrize("files", [FILES[:1], FILES])
def test_compose_reads_it(files: tuple[str, ...], profile: str) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("no docker compose here: install Debian's `docker-compose`")
    named = [word for name in files for word in ("-f", name)]
    environment = {"PATH": os.environ["PATH"], "RUNTIME_IMAGE": "yap/runtime-vllm:1.0.0", "COMPOSE_PROFILES": profile}
    command = ["docker", "compose", "--env-file", "/dev/null", *named, "config", "--format", "json"]
    answer = subprocess.run(command, cwd=DEPLOY, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    services = json.loads(answer.stdout)["services"]
    started = {name: devices(one) for name, one in services.items() if name.startswith("runtime-")}
    assert len(started) == int(profile.removeprefix("gpus-") or 1)
    if len(files) == 1 or len(started) < 8:
        assert len({gpu for gpus in started.values() for gpu in gpus}) == sum(map(len, started.values()))


def test_compose_wants_an_image() -> None:
    assert ":?" in compose()["x-runtime"]["image"]


def test_prometheus_reads_its_configuration(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here: install Debian's `prometheus`")
    mounted = "/etc/prometheus/yap/alerts.yaml"
    assert f"./observability/alerts.yaml:{mounted}:ro" in compose()["services"]["prometheus"]["volumes"]
    text = (DEPLOY / "compose/prometheus.yaml").read_text("utf-8")
    assert mounted in text
    (tmp_path / "prometheus.yaml").write_text(text.replace(mounted, str(DEPLOY / "observability/alerts.yaml")))
    answer = subprocess.run(
        [promtool, "check", "config", str(tmp_path / "prometheus.yaml")], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_router_reads_the_session_key_where_the_server_does_and_in_its_order() -> None:
    read = re.findall(r"set-var\(txn\.session\) (req\.fhdr|url_param|req\.cook)\(([^)]+)\)", haproxy())
    assert read == [("req.fhdr", HEADER), ("url_param", QUERY), ("req.cook", COOKIE)]
