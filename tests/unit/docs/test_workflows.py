"""Every step of every workflow runs, with the variables that the workflow gives it and no others.

Stood in for, each by a script that is first in the PATH or lies where the step calls it:

- `.venv/bin/python -m pipeline`: quantizers, compilers and engines, and a machine with a GPU
  (`tests.harness.workflows.publishing_standins`); the hub is the one on loopback, and publishing is real;
- `make`: make itself, which prints what it would run (`-n`) and so checks the target and its variables;
- `sudo`: notes its words;
- `docker buildx bake`: itself with `--print`, which checks file, targets and variables; where there is no buildx, a
  look at the targets of bake.hcl;
- `cosign`: notes its words.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.settings import PipelineSettings
from runtime import artifact
from tests.harness.workflows.expressions import evaluate, expand
from tests.harness.workflows.publishing_standins import interpreter
from tests.harness.workflows.workflow import FOLDER, Job, Step, Workflow
from tests.hub import Account, Hub, Repository
from tests.hub.models import publish

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "hf_writer"
SECRETS = {"HF_TOKEN": TOKEN}
WORKFLOWS = sorted(path.name for path in FOLDER.glob("*.yml"))
SHELL = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c"]
TAG = {"ref": "refs/tags/v1.0.0", "event_name": "push", "repository": "acme/yap", "repository_owner": "acme"}
GITHUB = {**TAG, "actor": "somebody", "sha": "a" * 40}


@pytest.fixture(scope="module")
def one_hub() -> Iterator[Hub]:
    with Hub(accounts={TOKEN: Account("acme")}) as running:
        yield running


@pytest.fixture
def hub(one_hub: Hub) -> Hub:
    one_hub.repositories.clear()
    one_hub.seen.clear()
    return one_hub


@pytest.fixture(scope="module")
def pipelines(one_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The address of what runs the pipeline's commands; its client of the hub is set to the hub when it starts."""
    address = tmp_path_factory.mktemp("pipelines") / "socket"
    command = [sys.executable, "-m", "tests.harness.workflows.publishing_standins", str(address)]
    environment = os.environ | one_hub.environment()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield address
        server.kill()


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A checkout whose tools are the stand-ins."""
    folder = tmp_path / "checkout"
    (folder / "tools").mkdir(parents=True)
    (folder / ".venv/bin").mkdir(parents=True)
    for name in ("Makefile", "bake.hcl", "images", "pyproject.toml", "runtime", "pipeline", "client", "README.md"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    write(folder / "tools/make", f'echo "make $*" >>{folder}/calls\nexec {shutil.which("make")} -n "$@" >/dev/null')
    for name in ("sudo", "cosign"):
        write(folder / f"tools/{name}", f'echo "{name} $*" >>{folder}/calls')
    buildx = shutil.which("docker") and subprocess.run(["docker", "buildx", "version"], capture_output=True).returncode
    if buildx == 0:
        write(folder / "tools/docker", f'exec {shutil.which("docker")} "$@" $([ "$5" = lint ] && echo --print)')
    else:
        write(folder / "tools/docker", f'PYTHONPATH={ROOT} exec {sys.executable} {Path(__file__)} "$@"')
    return folder


@pytest.fixture
def builder(workplace: Path, pipelines: Path) -> Path:
    """A checkout on a machine that builds engines."""
    interpreter(workplace / ".venv/bin/python", pipelines)
    return workplace


def write(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def run(step: Step, workplace: Path, **more: str) -> tuple[int, str, dict[str, str]]:
    """Run a step as the runner does; returns its exit code, what it said, and its outputs."""
    output = workplace / "outputs"
    output.write_text("")
    environment = {
        "PATH": f"{workplace / 'tools'}:{os.environ['PATH']}",
        "HOME": str(workplace / "home"),
        "GITHUB_OUTPUT": str(output),
        "CALLS": str(workplace / "work"),
        **({"LD_LIBRARY_PATH": os.environ["LD_LIBRARY_PATH"]} if "LD_LIBRARY_PATH" in os.environ else {}),
        **step.environment,
        **more,
    }
    done = subprocess.run(
        [*SHELL, step.script], cwd=workplace, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return done.returncode, done.stdout + done.stderr, outputs


def calls(workplace: Path) -> list[str]:
    path = workplace / "calls"
    return path.read_text().splitlines() if path.exists() else []


# Publishing engines


def engines(lane: str, secrets: Mapping[str, str] = SECRETS, **given: str) -> list[Job]:
    workflow = Workflow.read("publish-engine.yml")
    models = [{"model": f"acme/{name}", "repository": f"acme/{name}-4bit"} for name in ("llama", "qwen")]
    chosen = {"engines": json.dumps(models), "architectures": '["sm90"]', "lane": lane, **given}
    variables = {"PUBLISH_REPOSITORY": "acme/yap"}
    return list(workflow.jobs(github=GITHUB, inputs=workflow.inputs(**chosen), vars=variables, secrets=secrets))


def finish(job: Job, builder: Path, **environment: str) -> None:
    for step in job.steps():
        code, said, _ = run(step, builder, **environment)
        assert code == 0, f"{step.name}:\n{said}"


def test_an_engine_of_each_model_is_published_to_its_own_repository(hub: Hub, builder: Path, tmp_path: Path) -> None:
    names = ("llama", "qwen")
    for name in names:
        publish(hub, f"acme/{name}", tmp_path / name, max_position_embeddings=8192)
    for job in engines("trt"):
        finish(job, builder, **hub.environment())
    for name in names:
        repository = hub.repositories[f"acme/{name}-4bit"]
        assert repository.private
        metadata = json.loads(repository.files[artifact.METADATA_NAME])
        assert metadata["lane"] == "trt"
        assert metadata["chat"]["source"]["repo"] == f"acme/{name}"
        assert metadata["chat"]["limits"]["max_batch_size"] == 64
    assert len(hub.repositories) == 2 * len(names)
    assert calls(builder) == ["make setup-lane LANE=trt"] * 2


def test_a_job_without_the_secret_exchanges_its_identity(hub: Hub, builder: Path, tmp_path: Path) -> None:
    publish(hub, "acme/llama", tmp_path / "llama", max_position_embeddings=8192)
    repository = hub.repositories["acme/llama-4bit-sm90"] = Repository("acme/llama-4bit-sm90", private=True)
    job = engines("vllm", secrets={})[0]
    # What the runner gives a job that may write an id-token.
    assert job.definition["permissions"]["id-token"] == "write"
    finish(job, builder, **hub.environment(), HF_OIDC_ID_TOKEN="a-trusted-job")
    assert json.loads(repository.files[artifact.METADATA_NAME])["lane"] == "vllm"
    assert hub.requests("POST", "^/oauth/token$")


def test_what_publishing_lacks_is_told_before_any_work(hub: Hub, builder: Path, tmp_path: Path) -> None:
    publish(hub, "acme/llama", tmp_path / "llama", max_position_embeddings=8192)
    job = engines("trt", batch_size="", engines='[{"model": "acme/llama", "repository": "org/model"}]')[0]
    _, plan, _ = job.steps()
    code, said, _ = run(plan, builder, **hub.environment())
    assert code == 64
    assert "TRT_MAX_BATCH_SIZE: expected a number" in said
    assert "HF_PUSH_REPO_ID: expected a repository such as acme/llama-8b-awq, found the placeholder" in said
    assert not (builder / "work").exists()


def test_what_a_tag_publishes_is_what_the_variables_say(hub: Hub) -> None:
    workflow = Workflow.read("publish-engine.yml")
    text = (FOLDER / "publish-engine.yml").read_text()
    named = set(re.findall(r"vars\.(PUBLISH_\w+)", text))
    assert named <= set(re.findall(r"PUBLISH_\w+", text[: text.index("workflow_dispatch")])), "told at the head"
    values = {
        "PUBLISH_REPOSITORY": "acme/yap",
        "PUBLISH_ENGINES": '[{"model": "acme/a", "repository": "acme/a-awq"}]',
        "PUBLISH_ARCHITECTURES": '["sm90", "sm80"]',
        "PUBLISH_LANE": "trt",
        "PUBLISH_METHOD": "4bit",
        "PUBLISH_TOOL": "acme/intent",
        "PUBLISH_BATCH_SIZE": "32",
        "PUBLISH_PRIVATE": "0",
    }
    assert named == set(values)
    jobs = list(workflow.jobs(github=GITHUB, inputs={}, vars=values))
    assert [job.cell["architecture"] for job in jobs] == ["sm90", "sm80"]
    assert all(
        job.environment
        == {
            "INFERENCE_ENGINE": "trt",
            "METHOD": "4bit",
            "MODEL": "acme/a",
            "TOOL": "acme/intent",
            "TRT_MAX_BATCH_SIZE": "32",
            "HF_PUSH_REPO_ID": "acme/a-awq",
            "HF_PUSH_PRIVATE": "0",
        }
        for job in jobs
    )
    assert not list(workflow.jobs(github={**GITHUB, "repository": "fork/yap"}, vars=values))


@pytest.mark.parametrize("lane", ["vllm", "trt"])
@pytest.mark.parametrize("architectures", ['["sm90"]', '["sm80", "sm90", "sm100"]'])
def test_no_two_jobs_overwrite_each_other(lane: str, architectures: str) -> None:
    jobs = engines(lane, architectures=architectures)
    places = [(job.environment["HF_PUSH_REPO_ID"], job.cell["architecture"]) for job in jobs]
    assert len(set(places)) == len(places)
    if lane == "vllm":
        assert len({repo for repo, _ in places}) == len(places)


def test_every_variable_of_a_job_is_one_that_something_reads() -> None:
    known = {name.upper() for name in PipelineSettings.model_fields} | {"HF_TOKEN", "PIP_EXTRA_INDEX_URL"}
    for job in engines("vllm"):
        scripts = "".join(step.script for step in job.steps())
        names = {name for step in job.steps() for name in step.environment}
        assert {name for name in names - known if f"${name}" not in scripts and f"{{{name}" not in scripts} == set()


# The others


def test_every_step_of_the_checks_runs(workplace: Path) -> None:
    jobs = list(Workflow.read("checks.yml").jobs(github=GITHUB))
    assert {job.name for job in jobs} == {"tests", "locks", "bake"}
    for job in jobs:
        for step in job.steps():
            code, said, _ = run(step, workplace)
            assert code == 0, f"{job.name}: {step.name}:\n{said}"
    assert {"make lint", "make test", "make locks-check"} <= set(calls(workplace))


@pytest.mark.skipif(shutil.which("jq") is None, reason="expected jq, which the runners have")
def test_every_image_that_bake_knows_is_built_and_signed_by_its_digest(workplace: Path) -> None:
    workflow = Workflow.read("images.yml")
    (targets,) = workflow.jobs(github=GITHUB, needs={"targets": {"outputs": {"targets": "[]"}}})
    outputs: dict[str, Any] = {}
    for step in targets.steps():
        code, said, written = run(step, workplace)
        assert code == 0, said
        outputs[str(step.identity)] = {"outputs": written}
    needs = {"targets": {"outputs": {
        name: expand(value, {"steps": outputs}) for name, value in targets.definition["outputs"].items()
    }}}  # fmt: skip
    images = [job for job in workflow.jobs(github=GITHUB, needs=needs) if job.name == "image"]
    names = {job.cell["target"] for job in images}
    assert {"pipeline-vllm", "runtime-vllm", "runtime-tool"} <= names
    for job in images:
        target = job.cell["target"]
        built = {"bake": {"outputs": {"metadata": json.dumps({target: {"containerimage.digest": "sha256:12"}})}}}
        for step in job.steps(built):
            code, said, _ = run(step, workplace)
            assert code == 0, f"{target}: {step.name}:\n{said}"
    signed = [line for line in calls(workplace) if line.startswith("cosign")]
    assert sorted(signed) == sorted(f"cosign sign --yes ghcr.io/acme/{name}@sha256:12" for name in names)


def test_no_workflow_is_left_out() -> None:
    assert WORKFLOWS == ["checks.yml", "images.yml", "publish-engine.yml"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'a' == 'A' && 'x' || 'y'", "x"),
        ("inputs.lane || vars.LANE", "trt"),
        ("inputs.none || vars.none", None),
        ("!(1 == 2)", True),
        ("format('{0}-{1}', 'a', vars.LANE)", "a-trt"),
        ("fromJSON('[1, 2]')", [1, 2]),
        ("github.event != 'push' || !startsWith('refs/tags/x', 'refs/tags/')", True),
        ("'it''s'", "it's"),
    ],
)
def test_expressions_are_read_as_github_reads_them(text: str, value: object) -> None:
    contexts: Mapping[str, Any] = {"inputs": {"lane": ""}, "vars": {"LANE": "trt"}, "github": {}}
    assert evaluate(text, contexts) == value


@pytest.mark.parametrize("text", ["unknown.thing", "hashFiles('x')", "1 +", "("])
def test_what_is_not_understood_is_no_value(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        evaluate(text, {"github": {}})


def bake(arguments: list[str]) -> None:
    """What stands in for `docker buildx bake -f bake.hcl` where there is no buildx."""
    assert arguments[:3] == ["buildx", "bake", "-f"], arguments
    text = Path(arguments[3]).read_text()
    chosen = [word for word in arguments[4:] if word != "--print"]
    blocks = re.findall(r'^(target|group) "(\w[\w-]*)"', text, re.M)
    assert {name for _, name in blocks} >= set(chosen), chosen
    lanes = {kind: re.search(rf'target "{kind}" {{.*?lane = (\[.*?\])', text, re.S) for kind in ("pipeline", "runtime")}
    groups = {kind: [f"{kind}-{lane}" for lane in yaml.safe_load(found[1])] for kind, found in lanes.items() if found}
    print(json.dumps({"group": {"all": {"targets": list(groups)}, **{k: {"targets": v} for k, v in groups.items()}}}))


if __name__ == "__main__":
    bake(sys.argv[1:])
