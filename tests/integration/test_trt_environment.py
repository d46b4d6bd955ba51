"""The TensorRT-LLM lane's start-up paths in an environment made from its own lock.

Its client of the hub and its transformers are older than those of every other lane, so that what runs there is not
shown by tests that run here. torch and TensorRT-LLM cannot be had from PyPI; the rest of what our source imports can.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from packaging.utils import canonicalize_name

from runtime.text.tokenizer import load_tokenizer
from tests.harness.models import rope, saved
from tests.harness.source.imports import LOCKS, ROOT, all_imports, distributions_of, environments_of, pins_of
from tests.harness.trt.lane import H200, STAND_IN
from tests.hub import Account, Hub
from tests.hub.artifacts import contents, engine_artifact
from tests.hub.client import configure_client, key_pair
from tests.hub.models import publish

pytestmark = [
    pytest.mark.network,
    # The client of this environment hands httpx the files that it uploads as `data`.
    pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"),
]

UV = ROOT / ".venv-tools/bin/uv"
REPO, TOKEN = "acme/llama-8b-trt", "hf_writer"
# Not on PyPI, or nothing without those that are not.
OUT_OF_REACH = {"torch", "tensorrt-llm", "nvidia-modelopt"}
# What is baked into an engine of a small model.
SIZES = {"TRT_MAX_BATCH_SIZE": "4", "TRT_MAX_INPUT_LEN": "700", "TRT_MAX_OUTPUT_LEN": "90"}

# A machine with a GPU, and TensorRT-LLM as far as its metadata is asked.
START = f"""
import sys
from runtime.host import cuda, machine
from runtime.host.machine import Gpu, Machine
here = {H200!r}
machine.describe = lambda: here
cuda.probe = lambda: None
from pipeline.plan import hardware
hardware._packages_of = lambda _: dict(here.packages)
"""
PIPELINE = f"{START}\nfrom pipeline.cli import main\nmain()"
FETCH_MODEL = f"""{START}
from pipeline import source
from pipeline.progress import PlainProgress
facts = source.read_facts(sys.argv[1], "CHAT_MODEL")
assert not facts.problems, facts.problems
print(source.fetch(facts, PlainProgress()))
"""
FETCH_ARTIFACT = f"""{START}
from pathlib import Path
from runtime.artifact.fetch import Fetcher
from runtime.artifact import ArtifactError
try:
    print(Fetcher(Path(sys.argv[1]), here, lambda line: print(line, file=sys.stderr, flush=True)).fetch(sys.argv[2]))
except ArtifactError as error:
    sys.exit(str(error))
"""
TOKENIZERS = """
import json, sys
from pathlib import Path
from runtime.text.tokenizer import load_tokenizer
from tests.harness.models.saved import described
folders = [Path(name) for name in sys.argv[1:]]
print(json.dumps({folder.name: described(load_tokenizer(folder)) for folder in folders}))
"""
# How each model rotates: as transformers 4 itself takes it, and read from what a newer one saved.
ROTATIONS = """
import json, sys
from pathlib import Path
from transformers import AutoConfig
from runtime.artifact.generations import readable
from tests.harness.models.rope import FAMILIES, config, described
expected = [described(config(family, said)) for family, said in FAMILIES]
found, misread = [], 0
for place in map(Path, sys.argv[1:]):
    with readable(place) as folder:
        found.append(described(AutoConfig.from_pretrained(folder)))
    try:
        misread += described(AutoConfig.from_pretrained(place)) != found[-1]
    except Exception:
        misread += 1
print(json.dumps([expected, found, misread]))
"""
# Every module and name that the source takes from elsewhere: whether it is there.
NAMES = """
import importlib, json, sys
for module, name, where in json.load(sys.stdin):
    try:
        found = importlib.import_module(module)
        if name is not None and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")
    except ImportError as error:
        print(f"{where}: {error}")
"""


def wanted() -> list[str]:
    """The distributions that our source imports in this lane, as far as they can be had."""
    found = set()
    source = all_imports()
    for one in source:
        if "trt" in environments_of(one, [other for other in source if other.path == one.path]):
            found |= set(distributions_of(one.package))
    # httpx is the other generation's transport.
    return sorted(found & {pin.name for pin in pins_of("trt")} - OUT_OF_REACH)


@pytest.fixture(scope="module")
def python() -> Path:
    """Of an environment with the lock's versions; made once for each lock."""
    if not UV.is_file():
        pytest.fail(f"expected uv at {UV}, found none; run `make setup`")
    names = wanted()
    lock = LOCKS / "trt.txt"
    state = f"{sys.version_info[:2]} {names} {lock.read_text('utf-8')}"
    folder = ROOT / ".cache/trt-environment" / hashlib.sha256(state.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "made").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            command = [str(UV), "pip", "install", "--quiet", "--python", str(folder / "bin/python")]
            subprocess.run([str(UV), "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
            subprocess.run([*command, "--constraint", str(lock), *names], check=True, env=uv_environment())
            (folder / "made").touch()
    return folder / "bin/python"


def uv_environment() -> dict[str, str]:
    """uv reads its own variables: hand it what pip was told, as images/install.sh does."""
    environment = dict(os.environ)
    for own, pips in (
        ("UV_INDEX_URL", "PIP_INDEX_URL"),
        ("UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"),
        ("SSL_CERT_FILE", "PIP_CERT"),
    ):
        if not environment.get(own) and environment.get(pips):
            environment[own] = environment[pips]
    return environment


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(accounts={TOKEN: Account("acme"), "hf_other": Account("eve")}) as running:
        configure_client(monkeypatch, running, TOKEN)
        yield running
        huggingface_hub.close_session()


def environment(home: Path, hub: Hub | None = None, token: str | None = TOKEN, **more: str) -> dict[str, str]:
    """Of a process in the lane: nothing of this process's own but what every process needs."""
    path = f"{STAND_IN / 'bin'}{os.pathsep}{os.environ['PATH']}"
    found = {"PATH": path, "HOME": str(home), "PYTHONPATH": f"{ROOT}{os.pathsep}{STAND_IN}", "HF_HUB_OFFLINE": "1"}
    return {**found, **(hub.environment(token) if hub else {}), **SIZES, **more}


def run(python: Path, code: str, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-W", "error::ImportWarning", "-c", code, *arguments]
    return subprocess.run(command, cwd=env["HOME"], env=env, capture_output=True, text=True, timeout=300, check=False)


def done(answer: subprocess.CompletedProcess[str]) -> str:
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_it_holds_the_versions_of_the_lock_and_nothing_beside(python: Path) -> None:
    answer = subprocess.run(
        [str(UV), "pip", "list", "--quiet", "--format", "json", "--python", str(python)],
        capture_output=True,
        text=True,
        check=True,
    )
    installed = {(str(canonicalize_name(entry["name"])), entry["version"]) for entry in json.loads(answer.stdout)}
    assert installed <= {(pin.name, pin.version) for pin in pins_of("trt")}
    versions = dict(installed)
    assert versions["huggingface-hub"].startswith("0.")
    assert "httpx" not in versions
    assert {re.sub("[-_.]+", "-", name) for name in wanted()} <= versions.keys()


def test_every_name_that_is_imported_exists_there(python: Path, tmp_path: Path) -> None:
    source = all_imports()
    available = set(wanted())
    asked = [
        (one.module, one.name, f"{one.path}:{one.line}")
        for one in source
        if "trt" in environments_of(one, [other for other in source if other.path == one.path])
        and available & set(distributions_of(one.package))
    ]
    assert len(asked) > 50
    answer = subprocess.run(
        [str(python), "-c", NAMES],
        input=json.dumps(asked),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == ""


def test_a_tokenizer_that_a_newer_transformers_saved_is_the_same_there(python: Path, tmp_path: Path) -> None:
    folders = list(saved.write_all(tmp_path / "saved"))
    answer = done(run(python, TOKENIZERS, *map(str, folders), env=environment(tmp_path)))
    found = json.loads(answer.splitlines()[-1])
    expected = {folder.name: saved.described(load_tokenizer(folder)) for folder in folders}
    assert len(expected) == len(folders) > 20
    assert found == json.loads(json.dumps(expected))


def test_a_tokenizer_without_its_file_is_one_line_there(python: Path, tmp_path: Path) -> None:
    folder = next(saved.write_all(tmp_path / "saved"))
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    answer = run(python, TOKENIZERS, str(folder), env=environment(tmp_path))
    assert answer.returncode == 1
    assert "expected a fast tokenizer (tokenizer.json), found none" in answer.stderr.splitlines()[-1]


def test_a_model_that_a_newer_transformers_saved_rotates_the_same_there(python: Path, tmp_path: Path) -> None:
    places = rope.write_all(tmp_path / "saved")
    answer = done(run(python, ROTATIONS, *map(str, places), env=environment(tmp_path)))
    expected, found, misread = json.loads(answer.splitlines()[-1])
    assert dict(zip([place.name for place in places], found, strict=True)) == dict(
        zip([place.name for place in places], expected, strict=True)
    )
    # What is mended here is misread without a word otherwise.
    assert misread > 10


@pytest.mark.parametrize("method", ["awq", "fp8"])
def test_a_local_folder_is_planned(python: Path, hub: Hub, tmp_path: Path, method: str) -> None:
    publish(hub, REPO, tmp_path / "model")
    shown = done(run(python, PIPELINE, "plan", "--trt", method, str(tmp_path / "model"), env=environment(tmp_path)))
    assert "trt" in shown


@pytest.mark.parametrize("revision", ["", "@main", "@v1"])
def test_a_model_on_the_hub_is_planned_and_fetched(python: Path, hub: Hub, tmp_path: Path, revision: str) -> None:
    commit = publish(hub, REPO, tmp_path / "model", private=True)
    hub.repositories[REPO].tags["v1"] = commit.oid
    env = environment(tmp_path, hub)
    assert REPO in done(run(python, PIPELINE, "plan", "--trt", "awq", REPO + revision, env=env))
    weights = commit.files["model.safetensors"]
    # Of the weights a plan reads the header, by range.
    read = hub.requests("GET", f"^/storage/{weights.sha256}")
    assert all(request.range and request.status == 206 for request in read)
    assert sum(request.sent for request in read) < 1000 < len(weights.content)
    fetched = Path(done(run(python, FETCH_MODEL, REPO + revision, env=env)).strip())
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (fetched / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert {(request.host, request.token) for request in hub.requests("GET", "^/storage/")} == {("localhost", None)}
    hub.seen.clear()
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    assert REPO in done(run(python, PIPELINE, "plan", "--trt", "awq", REPO + revision, env=offline))
    assert Path(done(run(python, FETCH_MODEL, REPO + revision, env=offline)).strip()).resolve() == fetched.resolve()
    assert hub.seen == []


def test_a_killed_download_goes_on(python: Path, hub: Hub, tmp_path: Path) -> None:
    commit = publish(hub, REPO, tmp_path / "model", weights=40 << 20)
    weights = commit.files["model.safetensors"]
    slow = hub.fail("GET", f"^/storage/{weights.sha256}", bytes_per_s=12 << 20, times=99)
    env = environment(tmp_path, hub)
    command = [str(python), "-c", FETCH_MODEL, REPO]
    first = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    blobs = tmp_path / ".cache/huggingface/hub" / f"models--{REPO.replace('/', '--')}" / "blobs"
    partial = blobs / f"{weights.sha256}.partial"
    deadline = time.monotonic() + 60
    while not partial.exists() or partial.stat().st_size < 10 << 20:
        assert first.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline, "nothing arrived"
        time.sleep(0.02)
    first.kill()
    first.wait()
    arrived = partial.stat().st_size
    slow.bytes_per_s = 1 << 30
    fetched = Path(done(run(python, FETCH_MODEL, REPO, env=env)).strip())
    assert (fetched / "model.safetensors").read_bytes() == weights.content
    # A range with an end is a look at the weights' header.
    ranges = [seen.range for seen in hub.requests("GET", "^/storage/") if seen.range]
    assert [asked for asked in ranges if asked.endswith("-")] == [f"bytes={arrived}-"]


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 0, "after_bytes": 150_000},
        {"status": 0},
        {"status": 503, "headers": {"Retry-After": "0"}},
        {"status": 429, "headers": {"Retry-After": "0"}},
    ],
)
def test_an_artifact_is_pushed_and_fetched_over_a_bad_link(
    python: Path, hub: Hub, tmp_path: Path, fault: dict[str, object]
) -> None:
    folder = engine_artifact(tmp_path / "artifact", H200)
    env = environment(tmp_path, hub, HF_PUSH_REPO_ID=REPO)
    done(run(python, PIPELINE, "push", str(folder), env=env))
    hub.fail("GET", "^/storage/", **fault)
    hub.fail("GET", "^/api/models/", **{**fault, "after_bytes": 0})
    fetched = done(run(python, FETCH_ARTIFACT, str(tmp_path / "cache"), f"hf:{REPO}", env=env)).strip()
    assert contents(Path(fetched)) == contents(folder)
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    again = done(run(python, FETCH_ARTIFACT, str(tmp_path / "cache"), f"hf:{REPO}", env=offline)).strip()
    assert again == fetched


def test_what_cannot_be_had_is_one_line(python: Path, hub: Hub, tmp_path: Path) -> None:
    publish(hub, REPO, tmp_path / "model", private=True)

    def refusal(name: str, **more: str) -> str:
        env = environment(tmp_path, hub, **more)
        answer = run(python, FETCH_ARTIFACT, str(tmp_path / "cache"), name, env=env)
        assert answer.returncode == 1, answer.stdout + answer.stderr
        return answer.stderr.strip().splitlines()[-1]

    assert "expected an artifact with build_metadata.json" in refusal(f"hf:{REPO}")
    assert "found none; check its name" in refusal("hf:acme/nothing")
    assert "expected the revision v9, found none" in refusal(f"hf:{REPO}@v9")
    assert "it does not accept the token" in refusal(f"hf:{REPO}", HF_TOKEN="hf_wrong")
    assert "HF_HUB_OFFLINE is set" in refusal(f"hf:{REPO}", HF_HUB_OFFLINE="1")
    hub.repositories[REPO].gated, hub.repositories[REPO].private = True, False
    assert "found a gated one" in refusal(f"hf:{REPO}", HF_TOKEN="hf_other")


def test_a_jobs_identity_is_refused_in_one_line_where_the_client_cannot_exchange_it(
    python: Path, hub: Hub, tmp_path: Path
) -> None:
    folder = engine_artifact(tmp_path / "artifact", H200)
    env = environment(tmp_path, hub, None, HF_PUSH_REPO_ID=REPO, HF_OIDC_RESOURCE=REPO)
    answer = run(python, PIPELINE, "push", str(folder), env=env)
    assert answer.returncode != 0
    assert "expected a hub client that exchanges a job's identity (1.x), found huggingface_hub 0." in answer.stderr


def test_an_address_is_in_no_message(python: Path, hub: Hub, tmp_path: Path) -> None:
    """`requests` writes hosts and whole addresses into its messages."""
    code = (
        f"{START}\nfrom runtime.artifact import hub, hub_client\n"
        "try:\n    hub_client.get(sys.argv[1], {})\nexcept hub_client.http_errors() as error:\n"
        "    print(hub.is_transient(error), hub.reason(error))\n"
    )
    told = done(run(python, code, "http://127.0.0.1:9/storage/x?Signature=secret", env=environment(tmp_path, hub)))
    assert told.startswith("True ConnectionRefusedError:")
    assert "secret" not in told
    assert "127.0.0.1" not in told


def test_a_key_pair_signs_nothing_without_its_package(python: Path, hub: Hub, tmp_path: Path) -> None:
    folder = engine_artifact(tmp_path / "artifact", H200)
    secret, _ = key_pair(tmp_path)
    env = environment(tmp_path, hub, HF_PUSH_REPO_ID=REPO)
    answer = run(python, PIPELINE, "push", str(folder), "--sign-key", str(secret), env=env)
    assert answer.returncode != 0
    assert "expected model-signing to be installed, found none" in answer.stderr
