"""`deploy/kubernetes/`: every manifest is valid offline, and every field that must agree with the server does.

There is no Kubernetes where this is developed: nothing here has run in one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from runtime import defaults
from runtime.deployment.settings import RuntimeSettings
from runtime.server.process import SHUTDOWN_TIMEOUT_S
from runtime.server.session_key import COOKIE, HEADER

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("one-gpu", "tensor-parallel")
VERSIONS = ("1.30", "1.34")
FIELDS = yaml.safe_load((ROOT / "tests/data/kubernetes/fields.yaml").read_text("utf-8"))
Manifest = dict[str, Any]


def sources() -> list[tuple[str, Manifest]]:
    """Every manifest as it is written, with its file; patches and kustomizations are none."""
    found = []
    for path in sorted(FOLDER.rglob("*.yaml")):
        patch = path.name == "runtime.yaml" and path.parent.parent.name == "overlays"
        if path.name != "kustomization.yaml" and not patch:
            found += [(str(path.relative_to(FOLDER)), one) for one in yaml.safe_load_all(path.read_text("utf-8"))]
    return found


@cache
def built(overlay: str) -> tuple[Manifest, ...]:
    """What `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here: install Debian's `kubernetes-client`, 1.24 or newer")
    answer = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)], capture_output=True, text=True
    )
    if "unknown field" in answer.stderr or "invalid Kustomization" in answer.stderr:
        pytest.skip(f"the kubectl here is too old: {answer.stderr[:200]}")
    assert answer.returncode == 0, answer.stderr
    return tuple(yaml.safe_load_all(answer.stdout))


def one(manifests: list[Manifest] | tuple[Manifest, ...], kind: str, name: str) -> Manifest:
    (found,) = [each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def base(kind: str, name: str = "yap-runtime") -> Manifest:
    return one([manifest for file, manifest in sources() if file.startswith("base/")], kind, name)


def pod(manifest: Manifest) -> Manifest:
    found = manifest["spec"]["template"]["spec"]
    assert isinstance(found, dict)
    return found


def container(manifest: Manifest) -> Manifest:
    (found,) = pod(manifest)["containers"]
    assert isinstance(found, dict)
    return found


def literals(*kustomizations: str) -> dict[str, str]:
    """The variables that kustomizations give to a runtime."""
    found: dict[str, str] = {}
    for name in kustomizations:
        (made,) = yaml.safe_load((FOLDER / name / "kustomization.yaml").read_text("utf-8"))["configMapGenerator"]
        found |= dict(literal.split("=", 1) for literal in made["literals"])
    return found


def closed(schema: Any) -> Any:
    """A schema that refuses fields that it does not name."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) if key != "oneOf" else value for key, value in schema.items()}
    if "properties" in made and isinstance(made["properties"], dict):
        made |= {"type": "object", "additionalProperties": False}
    return made


def validate(manifest: Manifest) -> None:
    """Hold one manifest against its kind's schema."""
    if facts := FIELDS.get(manifest["kind"]):
        assert manifest["apiVersion"] == facts["apiVersion"]
        jsonschema.validate(manifest["spec"], closed(facts["spec"]) | {"$defs": closed(FIELDS["$defs"])})
        return
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    ("file", "manifest"), sources(), ids=lambda value: value if isinstance(value, str) else value["kind"]
)
def test_every_manifest_is_valid_as_it_is_written(file: str, manifest: Manifest) -> None:
    validate(manifest)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_an_overlay_sends_is_valid_and_names_what_it_brings(overlay: str) -> None:
    manifests = built(overlay)
    for manifest in manifests:
        validate(manifest)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "yap"
    runtime = one(manifests, "Deployment", "yap-runtime")
    configs = {each["metadata"]["name"] for each in manifests if each["kind"] == "ConfigMap"}
    assert {source["configMapRef"]["name"] for source in container(runtime)["envFrom"]} == configs
    claims = {each["metadata"]["name"] for each in manifests if each["kind"] == "PersistentVolumeClaim"}
    volumes = pod(runtime)["volumes"]
    assert {
        volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume
    } == claims
    assert all(len(volume) == 2 for volume in volumes), "a name and one source each"
    assert "registry.example.com" in container(runtime)["image"]


@pytest.mark.parametrize("field", ["loadBalancer.consistentHash.query", "timeout.http.never", "spelled"])
def test_a_field_that_nobody_wrote_down_is_refused(field: str) -> None:
    manifest = base("BackendTrafficPolicy", "yap-by-header")
    *path, last = field.split(".")
    place = manifest["spec"]
    for step in path:
        place = place.setdefault(step, {})
    place[last] = "x"
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest)


def test_facts_say_where_they_come_from() -> None:
    for kind, facts in FIELDS.items():
        assert kind == "$defs" or facts["source"]


# What must agree with the server


def test_the_pod_has_the_time_that_a_drain_and_a_stop_take() -> None:
    drain = float(literals("base")["DRAIN_TIMEOUT_S"])
    assert drain == RuntimeSettings.model_fields["drain_timeout_s"].default
    before = float(container(base("Deployment"))["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod(base("Deployment"))["terminationGracePeriodSeconds"] > before + drain + SHUTDOWN_TIMEOUT_S
    readiness = container(base("Deployment"))["readinessProbe"]
    assert before >= readiness["periodSeconds"] * readiness["failureThreshold"]


def test_probes_ask_the_servers_paths_on_its_port() -> None:
    found = container(base("Deployment"))
    assert found["ports"] == [{"name": "http", "containerPort": defaults.PORT}]
    paths = {name: found[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {
        "startupProbe": {"path": "/readyz", "port": "http"},
        "readinessProbe": {"path": "/readyz", "port": "http"},
        "livenessProbe": {"path": "/healthz", "port": "http"},
    }
    image = (ROOT / "images/runtime.Dockerfile").read_text("utf-8")
    start = re.search(r"--start-period=(\d+)m", image)
    assert start
    probe = found["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= int(start[1]) * 60
    assert base("Deployment")["spec"]["progressDeadlineSeconds"] > probe["periodSeconds"] * probe["failureThreshold"]


def test_the_pod_runs_as_the_image_does_and_nothing_more() -> None:
    image = (ROOT / "images/runtime.Dockerfile").read_text("utf-8")
    user, group = re.findall(r"^USER (\d+):(\d+)$", image, re.M)[-1]
    context = pod(base("Deployment"))["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    for name in ("yap-runtime", "yap-store"):
        manifest = base("Deployment", name)
        assert pod(manifest)["securityContext"]["runAsNonRoot"]
        assert pod(manifest)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod(manifest)["automountServiceAccountToken"]
        assert not pod(manifest)["enableServiceLinks"]
        assert container(manifest)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    writable = {
        mount["mountPath"] for mount in container(base("Deployment"))["volumeMounts"] if not mount.get("readOnly")
    }
    assert writable == {"/tmp", "/dev/shm", "/cache"}
    assert 'VOLUME ["/cache"]' in image


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_variables_are_the_servers_own_and_what_they_name_is_mounted(overlay: str) -> None:
    variables = literals("base", f"overlays/{overlay}")
    known = {name.upper() for name in RuntimeSettings.model_fields}
    assert variables.keys() <= known
    mounts = {mount["mountPath"] for mount in container(base("Deployment"))["volumeMounts"] if mount.get("readOnly")}
    for name, value in variables.items():
        if name.endswith("_FILE"):
            assert str(Path(value).parent) in mounts
        assert not re.search(r"KEY$|PASSWORD$|TOKEN$", name), "a secret is a file, or a Secret's key"
    store = base("Service", "yap-store")
    assert variables["SESSION_STORE"] == f"valkey://yap-store:{store['spec']['ports'][0]['port']}"


@pytest.mark.parametrize(("overlay", "gpus"), [("one-gpu", 1), ("tensor-parallel", 2)])
def test_a_pod_has_as_many_gpus_as_share_its_model(overlay: str, gpus: int) -> None:
    limits = container(base("Deployment"))["resources"]["limits"]
    patch = yaml.safe_load((FOLDER / "overlays" / overlay / "runtime.yaml").read_text("utf-8"))
    limits |= container(patch).get("resources", {}).get("limits", {})
    assert limits["nvidia.com/gpu"] == str(gpus)
    assert int(literals("base", f"overlays/{overlay}").get("TENSOR_PARALLEL_SIZE", 1)) == gpus


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_autoscaler_begins_before_a_server_is_full(overlay: str) -> None:
    slots = int(literals("base", f"overlays/{overlay}")["MAX_CONCURRENT_CONNECTIONS"])
    scaled = (
        base("ScaledObject") if shutil.which("kubectl") is None else one(built(overlay), "ScaledObject", "yap-runtime")
    )
    assert int(scaled["spec"]["triggers"][0]["metadata"]["threshold"]) == int(0.8 * slots)
    assert scaled["spec"]["scaleTargetRef"]["name"] == base("Deployment")["metadata"]["name"]
    assert "replicas" not in base("Deployment")["spec"], "the autoscaler's to say"


def test_its_queries_name_what_metrics_emits() -> None:
    from runtime.deployment.metrics import Metrics

    emitted = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    for trigger in base("ScaledObject")["spec"]["triggers"]:
        named = set(re.findall(r"\byap_\w+", trigger["metadata"]["query"]))
        assert named
        assert named <= emitted


def test_routes_lead_clients_to_the_service_and_nobody_to_metrics() -> None:
    paths = set()
    for name in ("yap-by-header", "yap-by-cookie"):
        (rule,) = base("HTTPRoute", name)["spec"]["rules"]
        assert rule["backendRefs"] == [{"name": "yap-runtime", "port": defaults.PORT}]
        assert rule["timeouts"]["request"] == "0s", "a conversation has no end but its own"
        paths |= {(match["path"]["type"], match["path"]["value"]) for match in rule["matches"]}
        policy = base("BackendTrafficPolicy", name)["spec"]
        assert policy["targetRefs"][0]["name"] == name
        assert policy["healthCheck"]["active"]["http"]["path"] == "/readyz"
        assert min(policy["circuitBreaker"].values()) > 1024
        assert int(policy["timeout"]["http"]["connectionIdleTimeout"].removesuffix("s")) < defaults.KEEP_ALIVE_S
    assert paths == {("Exact", "/ws"), ("PathPrefix", "/v1")}
    hashed = base("BackendTrafficPolicy", "yap-by-header")["spec"]["loadBalancer"]["consistentHash"]
    assert hashed == {"type": "Header", "header": {"name": HEADER}}
    cookie = base("BackendTrafficPolicy", "yap-by-cookie")["spec"]["loadBalancer"]["consistentHash"]["cookie"]
    ttl = RuntimeSettings.model_fields["session_idle_ttl_seconds"].default
    assert cookie == {"name": COOKIE, "ttl": f"{int(ttl) // 60}m"}


def test_the_gateways_log_has_no_query_where_a_browsers_key_stands() -> None:
    named = base("Gateway", "yap")["spec"]["infrastructure"]["parametersRef"]
    proxy = base(named["kind"], named["name"])
    assert proxy["apiVersion"].startswith(named["group"])
    (setting,) = proxy["spec"]["telemetry"]["accessLog"]["settings"]
    told = " ".join(setting["format"]["json"].values())
    assert "%RESPONSE_CODE%" in told
    assert not re.search(r"REQ\(|PATH|QUERY|HEADER|TRAILER|DYNAMIC_METADATA|FILTER_STATE", told)


def test_the_command_of_the_page_makes_rules_of_the_alerts() -> None:
    page = (ROOT / "docs/scaling.md").read_text("utf-8")
    (command,) = re.findall(r"^\{ printf .*?; \} \| kubectl apply -f -$", page, re.M | re.S)
    shown = subprocess.run(
        ["sh", "-c", command.replace("kubectl apply -f -", "cat")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rule = yaml.safe_load(shown.stdout)
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["metadata"]["namespace"] == base("Namespace", "yap")["metadata"]["name"]
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/observability/alerts.yaml").read_text("utf-8"))


def test_selectors_find_the_pods_and_the_job_is_that_of_the_alerts() -> None:
    labels = base("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert base("Service")["spec"]["selector"] == labels
    assert base("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert base("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    for spread in pod(base("Deployment"))["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == labels
    monitor = base("ServiceMonitor")["spec"]
    service = base("Service")["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= service.items()
    assert service[monitor["jobLabel"]] == "yap", "what the alerts select"
    assert {endpoint["path"] for endpoint in monitor["endpoints"]} == {"/metrics"}
    (ingress,) = base("NetworkPolicy")["spec"]["ingress"]
    assert ingress["ports"] == [{"protocol": "TCP", "port": defaults.PORT}]


def test_secrets_are_made_elsewhere_and_the_store_has_the_same_one() -> None:
    assert not [file for file, manifest in sources() if manifest["kind"] == "Secret"]
    names = {
        volume["secret"]["secretName"]
        for name in ("yap-runtime", "yap-store")
        for volume in pod(base("Deployment", name))["volumes"]
        if "secret" in volume
    }
    written = (FOLDER / "base/runtime.yaml").read_text("utf-8")
    assert all(f"create secret generic {name}" in written for name in names)
    assert all(
        volume["secret"]["defaultMode"] == 0o440 for volume in pod(base("Deployment"))["volumes"] if "secret" in volume
    )
