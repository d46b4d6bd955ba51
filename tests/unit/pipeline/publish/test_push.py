"""Publishing: what is refused before anything starts, and what the hub holds afterwards, byte by byte.

The client is the real one; the hub is `tests.hub`, on loopback, and fails when told to.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from pydantic import SecretStr

from pipeline.problem import WrongRequestError
from pipeline.publish import preconditions, publishing
from pipeline.publish.preconditions import Destination, SourceModel
from pipeline.publish.push import Published, push
from pipeline.publish.remote_repository import mismatch, read_repository
from pipeline.stages.stage import StageError
from runtime import artifact
from tests.harness.builds.progress import RecordedProgress
from tests.hub import Account, Hub, Repository
from tests.hub.artifacts import A100, H100, contents, cpu_artifact, engine_artifact, gpu_machine, random_bytes
from tests.hub.client import configure_client, key_pair
from tests.hub.store import Stored

# The client hands httpx the files that it uploads as `data`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[4]
REPO = "acme/llama-8b-int8"
TOKEN = "hf_writer"
MODEL = SourceModel("CHAT_MODEL", "acme/llama", "apache-2.0")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(accounts={TOKEN: Account("acme"), "hf_reader": Account("acme", "read")}, part_size=100_000) as running:
        configure_client(monkeypatch, running, TOKEN)
        yield running
        huggingface_hub.close_session()


def publish(folder: Path, *, private: bool = True, sign_key: Path | None = None) -> Published:
    told = RecordedProgress()
    published = push(folder, Destination(REPO, private, SecretStr(TOKEN)), sign_key, told)
    assert not told.fractions, "the hub's client shows bars of its own"
    return published


# Before anything starts


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_sent(hub: Hub, tmp_path: Path) -> None:
    models = [SourceModel("CHAT_MODEL", "acme/llama-awq", None, prequantized=True)]
    environment = {"HF_PUSH_PRIVATE": "yes"}
    destination, problems = preconditions.check_destination(models, tmp_path / "missing.pem", environment)
    assert destination is None
    assert [problem.where for problem in problems] == [
        *("publishing", "CHAT_MODEL", "--sign-key", "HF_PUSH_REPO_ID", "HF_PUSH_PRIVATE", "HF_TOKEN")
    ]
    assert all("\n" not in str(problem) for problem in problems)
    assert hub.seen == []


@pytest.mark.parametrize(
    ("repo", "wrong"),
    [
        ("acme/llama-8b-awq", False),
        ("acme/LLaMA_8b.v2", False),
        ("", True),
        ("llama", True),
        ("acme/", True),
        ("/llama", True),
        ("acme/llama/awq", True),
        ("acme/llama awq", True),
        ("https://huggingface.co/acme/llama", True),
        ("acme/-llama", True),
        ("acme/llama..awq", True),
        ("acme/llama.git", True),
        ("your-org/llama", True),
        ("acme/your-model", True),
        ("org/llama", True),
        ("acme/model", True),
        ("Your-Org/llama", True),
        ("acme/" + "x" * 97, True),
    ],
)
def test_a_repository_is_well_formed_and_not_a_placeholder(repo: str, wrong: bool) -> None:
    assert (preconditions.repo_id_problem(repo) is not None) == wrong


@pytest.mark.parametrize(
    ("account", "message"),
    [
        (Account("acme"), None),
        (Account("bob", orgs={"acme": "write"}), None),
        (Account("bob", orgs={"acme": "contributor"}), None),
        (Account("bob", "fineGrained", scoped={"acme": ("repo.write",)}), None),
        (Account("bob", "fineGrained", scoped={REPO: ("repo.content.read", "repo.write")}), None),
        (Account("acme", "read"), "HF_TOKEN: expected a token with write access, found one with the role read"),
        (Account("bob"), "HF_PUSH_REPO_ID: expected a namespace that the token may write to, not acme, found a token"),
        (Account("bob", orgs={"acme": "read"}), "found the role read in it"),
        (
            Account("acme", "fineGrained", scoped={"acme": ("repo.content.read",)}),
            "found a fine-grained one without it",
        ),
        (Account("bob", "fineGrained", scoped={"other": ("repo.write",)}), f"a token that may write to {REPO}"),
    ],
)
def test_the_hub_is_asked_whether_the_token_may_write(hub: Hub, account: Account, message: str | None) -> None:
    hub.accounts["hf_asked"] = account
    environment = {"HF_TOKEN": "hf_asked", "HF_PUSH_REPO_ID": REPO}
    destination, problems = preconditions.check_destination([MODEL], None, environment)
    assert len(hub.requests("GET", "whoami-v2$")) == 1
    assert not hub.requests("POST")
    if message is None:
        assert (destination, problems) == (Destination(REPO, True, SecretStr("hf_asked")), [])
    else:
        assert message in str(problems[0])


def test_a_token_that_the_hub_refuses_and_a_hub_that_does_not_answer_are_told_apart(hub: Hub) -> None:
    environment = {"HF_TOKEN": "hf_wrong", "HF_PUSH_REPO_ID": REPO}
    _, [refused] = preconditions.check_destination([MODEL], None, environment)
    assert "found one that it refuses" in str(refused)
    hub.fail("GET", "whoami", status=503, times=9)
    _, [silent] = preconditions.check_destination([MODEL], None, environment)
    assert "found status 503" in str(silent)


@pytest.mark.parametrize(
    "variable", ["HF_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_TOKEN_FILE", "HUGGINGFACE_HUB_TOKEN_FILE"]
)
def test_the_token_comes_from_a_variable_or_a_file(hub: Hub, tmp_path: Path, variable: str) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    value = str(tmp_path / "token") if variable.endswith("_FILE") else TOKEN
    destination, problems = preconditions.check_destination([MODEL], None, {variable: value, "HF_PUSH_REPO_ID": REPO})
    assert problems == []
    assert destination
    assert destination.token.get_secret_value() == TOKEN
    assert TOKEN not in repr(destination)
    assert TOKEN not in repr(destination)


def test_two_different_tokens_are_refused_without_showing_them(hub: Hub) -> None:
    environment = {"HF_TOKEN": TOKEN, "HUGGINGFACE_HUB_TOKEN": "hf_secret", "HF_PUSH_REPO_ID": REPO}
    _, [problem] = preconditions.check_destination([MODEL], None, environment)
    assert "HF_TOKEN and HUGGINGFACE_HUB_TOKEN: expected one token, found 2" in str(problem)
    assert "hf_secret" not in str(problem)


@pytest.mark.parametrize(
    ("job", "resource", "message"),
    [
        ("a-trusted-job", REPO, None),
        (
            "a-stranger",
            REPO,
            "expected a token in exchange for this job's identity, found status 403",
        ),
        (
            "a-trusted-job",
            "acme/other",
            f"expected {REPO}, as HF_PUSH_REPO_ID says, found acme/other",
        ),
    ],
)
def test_a_job_publishes_by_its_identity(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, resource: str, message: str | None
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.utils._auth._OIDC_TOKEN_CACHE", None)
    for name, value in {"HF_OIDC_RESOURCE": resource, "HF_OIDC_ID_TOKEN": job, "HF_PUSH_REPO_ID": REPO}.items():
        monkeypatch.setenv(name, value)
    destination, problems = preconditions.check_destination([MODEL], None)
    if message:
        assert [message in str(problem) for problem in problems] == [True]
        return
    assert destination
    folder = cpu_artifact(tmp_path / "artifact")
    push(folder, destination, None, RecordedProgress())
    assert {path: hub.repositories[REPO].files[path] for path in contents(folder)} == contents(folder)


def test_an_exchange_that_gives_no_token_is_told_and_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    environment = {"HF_OIDC_RESOURCE": REPO, "HF_PUSH_REPO_ID": REPO}
    destination, problems = preconditions.check_destination([MODEL], None, environment)
    told = "HF_OIDC_RESOURCE: expected a token in exchange for this job's identity, found none"
    assert (destination, [str(problem) for problem in problems]) == (None, [told])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"passed": None}, "found no: never validated"),
        ({"passed": False}, "found no: failed perplexity_ratio"),
        ({"license": None}, "CHAT_MODEL: expected a source with a known licence"),
        ({"prequantized": True}, "expected a model that was quantized here, found acme/llama, which came quantized"),
    ],
)
def test_only_what_passed_and_may_be_published_is(hub: Hub, tmp_path: Path, made: Any, message: str) -> None:
    folder = cpu_artifact(tmp_path / "artifact", **made)
    with pytest.raises(WrongRequestError, match=message):
        publishing.push_artifact(folder, None)
    assert hub.repositories == {}


def test_an_artifact_whose_files_changed_is_refused(hub: Hub, tmp_path: Path) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    (folder / "model.safetensors").write_bytes(random_bytes("other", 300_000))
    with pytest.raises(WrongRequestError, match="expected SHA-256"):
        publishing.push_artifact(folder, None)
    assert hub.repositories == {}


def test_a_signature_over_something_else_is_refused(hub: Hub, tmp_path: Path) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    publishing.sign_artifact(folder, key_pair(tmp_path)[0])
    metadata = artifact.read(folder)
    metadata.model_copy(update={"created_at": "2027-01-01T00:00:00+00:00"}).write(folder)
    with pytest.raises(WrongRequestError, match=r"expected what was signed, found that build_metadata\.json differs"):
        publishing.push_artifact(folder, None)


# What the hub holds afterwards


def test_a_push_makes_a_private_repository_with_one_whole_commit(hub: Hub, tmp_path: Path) -> None:
    folder = cpu_artifact(tmp_path / "artifact", tool=True)
    published = publish(folder)
    repository = hub.repositories[REPO]
    assert repository.private
    assert len(repository.commits) == 2
    assert published.commit == repository.head.oid
    held = repository.files
    assert {path: held[path] for path in contents(folder)} == contents(folder)
    assert held.keys() - contents(folder).keys() == {".gitattributes", "README.md"}
    assert list(held)[-1] == "build_metadata.json"
    assert repository.head.files["model.safetensors"].lfs


def test_a_public_repository_takes_the_flag(hub: Hub, tmp_path: Path) -> None:
    publish(cpu_artifact(tmp_path / "artifact"), private=False)
    assert not hub.repositories[REPO].private


def test_a_private_push_to_a_public_repository_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[REPO] = Repository(REPO, private=False)
    with pytest.raises(StageError, match="expected a private repository, found a public one"):
        publish(cpu_artifact(tmp_path / "artifact"))
    assert len(hub.repositories[REPO].commits) == 1
    assert hub.uploaded() == 0


def test_pushing_again_sends_nothing_and_makes_no_commit(hub: Hub, tmp_path: Path) -> None:
    folder = cpu_artifact(tmp_path / "artifact", tool=True)
    first = publish(folder)
    hub.seen.clear()
    second = publish(folder)
    assert (second.commit, second.sent, second.unchanged) == (first.commit, 0, 5)
    assert len(hub.repositories[REPO].commits) == 2
    assert not hub.requests("PUT")
    assert not hub.requests("POST", "commit|batch")


def test_only_what_changed_is_sent_and_what_is_gone_is_removed(hub: Hub, tmp_path: Path) -> None:
    publish(cpu_artifact(tmp_path / "first", tool=True))
    repository = hub.repositories[REPO]
    repository.commit("notes", {**repository.head.files, "NOTES.md": Stored(b"by hand", lfs=False)})
    hub.seen.clear()
    second = cpu_artifact(tmp_path / "second", weights=random_bytes("new", 250_000))
    publish(second)
    assert hub.uploaded() == 250_000
    held = repository.files
    assert {path: held[path] for path in contents(second)} == contents(second)
    assert held.keys() - contents(second).keys() == {".gitattributes", "README.md", "NOTES.md"}


def test_a_signature_goes_along_and_leaves_with_what_it_signed(hub: Hub, tmp_path: Path) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    publish(folder, sign_key=key_pair(tmp_path)[0])
    held = hub.repositories[REPO].files
    assert held["model.sig"] == (folder / "model.sig").read_bytes()
    publish(cpu_artifact(tmp_path / "unsigned", weights=b"other"))
    assert "model.sig" not in hub.repositories[REPO].files


def test_the_engine_of_a_second_gpu_is_added_beside_the_first(hub: Hub, tmp_path: Path) -> None:
    key, _ = key_pair(tmp_path)
    hopper = engine_artifact(tmp_path / "hopper", H100)
    publish(hopper, sign_key=key)
    repository = hub.repositories[REPO]
    first = repository.files
    place = "trt-llm/engines/sm90_trt-llm-1.2.1_cuda13.0"
    ampere = engine_artifact(tmp_path / "ampere", A100)
    publish(ampere, sign_key=key)
    held = repository.files
    assert {path for path in first if held.get(path) != first[path]} == {
        "README.md",
        "build_metadata.json",
        "model.sig",
    }
    assert held[f"{place}/build_metadata.json"] == (hopper / "build_metadata.json").read_bytes()
    assert held[f"{place}/model.sig"] == (hopper / "model.sig").read_bytes()
    assert held["build_metadata.json"] == (ampere / "build_metadata.json").read_bytes()
    card = held["README.md"].decode()
    assert "NVIDIA H100 80GB HBM3 (sm90" in card
    assert "NVIDIA A100-SXM4-80GB (sm80" in card
    # Its own engine compiled anew replaces it, and only it.
    again = engine_artifact(tmp_path / "again", A100, engine=random_bytes("again", 150_000))
    publish(again)
    now = repository.files
    assert {path: now[path] for path in first if path.startswith(place)} == {
        path: first[path] for path in first if path.startswith(place)
    }
    assert now["trt-llm/engines/sm80_trt-llm-1.2.1_cuda13.0/rank0.engine"] == random_bytes("again", 150_000)
    assert "trt-llm/engines/sm80_trt-llm-1.2.1_cuda13.0/model.sig" not in now


def test_an_engine_for_two_gpus_lies_beside_the_one_for_one(hub: Hub, tmp_path: Path) -> None:
    publish(engine_artifact(tmp_path / "one", H100))
    first = hub.repositories[REPO].files
    publish(engine_artifact(tmp_path / "two", gpu_machine(90, "NVIDIA H100 80GB HBM3", gpus=2), tensor=2))
    held = hub.repositories[REPO].files
    place = "trt-llm/engines/sm90_trt-llm-1.2.1_cuda13.0"
    assert {path: held.get(path) for path in first if path.startswith(place)} == {
        path: first[path] for path in first if path.startswith(place)
    }
    assert {f"{place}_tp2/rank0.engine", f"{place}_tp2/rank1.engine", f"{place}_tp2/build_metadata.json"} <= held.keys()
    card = held["README.md"].decode()
    assert f"engine `{place}`\n" in card
    assert f"engine `{place}_tp2` for 2 GPUs\n" in card
    assert "for 2 × sm90" in hub.repositories[REPO].commits[-1].title


def test_an_engine_of_another_model_is_not_put_beside(hub: Hub, tmp_path: Path) -> None:
    publish(engine_artifact(tmp_path / "hopper", H100))
    before = hub.repositories[REPO].files
    with pytest.raises(StageError, match=r"expected the tokenizer\.json that the engine sm90_.* shares, found another"):
        publish(engine_artifact(tmp_path / "ampere", A100, tokenizer='{"other": true}'))
    with pytest.raises(StageError, match="expected an artifact of the lane trt beside its engine"):
        publish(cpu_artifact(tmp_path / "cpu"))
    assert hub.repositories[REPO].files == before


# When the hub fails


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("PUT", "/parts/2$", {"status": 500, "after_bytes": 60_000}),
        ("PUT", "/parts/3$", {"status": 0, "after_bytes": 30_000}),
        ("PUT", "/parts/1$", {"bytes_per_s": 400_000}),
        ("POST", "batch$", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("POST", "/commit/main$", {"status": 500}),
        ("POST", "/commit/main$", {"status": 409}),
        ("POST", "/commit/main$", {"status": 0}),
        ("GET", "/tree/", {"status": 503}),
        ("POST", "repos/create$", {"status": 500}),
        ("POST", "/complete$", {"status": 502}),
    ],
)
def test_what_passes_by_itself_is_waited_for(hub: Hub, tmp_path: Path, method: str, path: str, fault: Any) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    made = hub.fail(method, path, **fault)
    publish(folder)
    assert made.seen >= 1
    repository = hub.repositories[REPO]
    assert len(repository.commits) == 2
    assert {path: repository.files[path] for path in contents(folder)} == contents(folder)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: Hub, tmp_path: Path) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    hub.fail("POST", "/commit/main$", lost=True)
    published = publish(folder)
    repository = hub.repositories[REPO]
    assert len(repository.commits) == 2
    assert published.commit == repository.head.oid


def test_a_commit_that_came_in_between_is_kept(hub: Hub, tmp_path: Path) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    hub.fail("POST", "/preupload/", status=500, also=lambda: hub.repositories[REPO].put(NOTES__md=b"hello"))
    publish(folder)
    repository = hub.repositories[REPO]
    assert [commit.title for commit in repository.commits][1] == "edit"
    assert len(repository.commits) == 3
    assert repository.files["NOTES.md"] == b"hello"
    assert {path: repository.files[path] for path in contents(folder)} == contents(folder)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/commit/main$", 403),
        ("POST", "batch$", 401),
        ("POST", "/commit/main$", 500),
        ("POST", "repos/create", 403),
    ],
)
def test_a_failure_leaves_the_repository_and_the_artifact_and_says_how_to_go_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str, status: int
) -> None:
    monkeypatch.setattr("runtime.artifact.hub.TRIES", 3)
    monkeypatch.setattr("runtime.artifact.hub.LONGEST_WAIT_S", 0.01)
    folder = cpu_artifact(tmp_path / "my artifact")
    before = contents(folder)
    hub.fail(method, path, status=status, times=99)
    with pytest.raises(StageError) as failed:
        publish(folder)
    told = str(failed.value)
    assert f"status {status}" in told
    assert f"the artifact stays at {folder}; go on with `yap-pipeline push '{folder}'`" in told
    assert "\n" not in told
    assert TOKEN not in told
    assert contents(folder) == before
    assert REPO not in hub.repositories or len(hub.repositories[REPO].commits) == 1
    hub.faults.clear()
    uploaded = hub.uploaded()
    publish(folder)
    assert {path: hub.repositories[REPO].files[path] for path in before} == before
    # What the hub had taken before the failure is not sent again.
    assert hub.uploaded() == max(uploaded, 300_000)


def test_a_commit_that_does_not_hold_what_was_sent_is_noticed(hub: Hub, tmp_path: Path) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    publish(folder)
    metadata, api = artifact.read(folder), huggingface_hub.HfApi(token=TOKEN)
    repository = hub.repositories[REPO]
    assert mismatch(metadata, read_repository(api, REPO, "main")) is None
    repository.commit("edit", {**repository.head.files, "model.safetensors": Stored(b"other", lfs=True)})
    assert mismatch(metadata, read_repository(api, REPO, "main")) == "model.safetensors differs"
    left = {path: stored for path, stored in repository.head.files.items() if path != "config.json"}
    repository.commit("edit", left)
    assert mismatch(metadata, read_repository(api, REPO, "main")) in {
        "config.json is missing",
        "model.safetensors differs",
    }


# The commands


def command(hub: Hub, home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The pipeline as a user starts it, its heavy parts replaced; publishing is real."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
        **hub.environment(TOKEN),
        "CALLS": str(home / "calls"),
        "AWQ_CACHE_DIR": str(home / "cache"),
        "HF_HOME": str(home / "hf"),
        **variables,
    }
    line = [sys.executable, "-m", "tests.harness.builds.standins", *arguments]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_without_the_flag_no_variable_causes_an_upload(hub: Hub, tmp_path: Path) -> None:
    variables = {"HF_PUSH_REPO_ID": REPO, "HF_PUSH_PRIVATE": "0", "PUSH_QUANT": "1", "HF_PUSH": "1"}
    done = command(
        hub, tmp_path, "run", "--cpu", "int8", "embedded", "embedded", "--out", str(tmp_path / "a"), **variables
    )
    assert done.returncode == 0, done.stderr
    assert hub.seen == []


def test_a_run_with_the_flag_publishes_what_it_made(hub: Hub, tmp_path: Path) -> None:
    out, key = tmp_path / "a", key_pair(tmp_path)[0]
    request = [
        "run",
        "--cpu",
        "int8",
        "embedded",
        "embedded",
        "--out",
        str(out),
        "--push-quant",
        "--sign-key",
        str(key),
    ]
    done = command(hub, tmp_path, *request, HF_PUSH_REPO_ID=REPO)
    assert done.returncode == 0, done.stderr
    held = hub.repositories[REPO].files
    assert {path: held[path] for path in contents(out)} == contents(out)
    assert held["model.sig"] == (out / "model.sig").read_bytes()
    assert f"ARTIFACT=hf:{REPO}@{hub.repositories[REPO].head.oid}" in done.stdout


def test_a_run_that_could_not_publish_does_not_start(hub: Hub, tmp_path: Path) -> None:
    request = ["run", "--cpu", "int3", "embedded", "embedded", "--out", str(tmp_path / "a"), "--push-quant"]
    done = command(hub, tmp_path, *request, HF_PUSH_REPO_ID="your-org/model", HF_PUSH_PRIVATE="2", HF_TOKEN="")
    assert done.returncode == 64
    lines = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), done.stderr
    for name in ("int3", "HF_PUSH_REPO_ID", "HF_PUSH_PRIVATE", "HF_TOKEN"):
        assert sum(name in line for line in lines) == 1, done.stderr
    assert not (tmp_path / "calls").exists()


def test_a_hub_without_xet_storage_says_which_variable_to_set(hub: Hub, tmp_path: Path) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    done = command(hub, tmp_path, "push", str(folder), HF_PUSH_REPO_ID=REPO, HF_HUB_DISABLE_XET="0")
    assert done.returncode == 1
    assert "expected a hub with Xet storage, found a plain LFS hub" in done.stderr
    assert "set HF_HUB_DISABLE_XET=1; the artifact stays at" in done.stderr


def test_a_failed_upload_costs_nothing_but_itself(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "a"
    hub.fail("POST", "/commit/main$", status=403, times=99)
    request = ["run", "--cpu", "int8", "embedded", "embedded", "--out", str(out), "--push-quant"]
    done = command(hub, tmp_path, *request, HF_PUSH_REPO_ID=REPO)
    assert done.returncode == 1
    assert f"go on with `yap-pipeline push {out}`" in done.stderr
    assert "Traceback" not in done.stderr
    hub.faults.clear()
    again = command(hub, tmp_path, "push", str(out), HF_PUSH_REPO_ID=REPO)
    assert again.returncode == 0, again.stderr
    assert {path: hub.repositories[REPO].files[path] for path in contents(out)} == contents(out)
