"""Each tool is measured on utterances that ask for it, the user's where there are some, or said to be not measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import revalidate
from pipeline.lanes import gate_specs
from pipeline.lanes.gates import default_thresholds, failures
from pipeline.plan import BuildRequest
from pipeline.plan.prepare import prepare
from pipeline.problem import WrongRequestError
from pipeline.publish.model_card import card
from pipeline.publish.reports.artifact_report import show_artifact
from pipeline.run import GateError, Run
from pipeline.validate import tool_accuracy as measuring
from pipeline.validate import validation as validating
from runtime import artifact
from runtime.artifact import SCREENSHOT_TOOL, ArtifactError, verify
from runtime.deployment.classifier import Decision, Tool, ToolProbability
from tests.harness.builds.progress import RecordedProgress
from tests.harness.models.classifiers import checkpoint

NAMES = ("none", "take_screenshot", "play_music", "set_timer")
MUSIC = [f"play song number {n}" for n in range(12)]
TIMERS = [f"wake me in {n} minutes" for n in range(12)]
CHAT = [f"I saw {n} cats" for n in range(60)]
ROWS = [
    *({"text": text, "label": "play_music"} for text in MUSIC),
    *({"text": text, "label": "set_timer"} for text in TIMERS),
    *({"text": text, "label": "none"} for text in CHAT),
]
Rule = Callable[[str, str], bool]


def right(tool: str, text: str) -> bool:
    return {"play_music": "song" in text, "set_timer": "wake" in text, SCREENSHOT_TOOL: text in LOOKS}[tool]


LOOKS = {entry.turns[-1] for entry in measuring.heldout_utterances() if entry.screenshot}


@pytest.fixture
def decides(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rule], None]:
    """Set the rule by which the classifier asks for a tool."""

    def set_rule(rule: Rule) -> None:
        class Ruled:
            def __init__(self, folder: Path, *, tools: Sequence[Tool], **_: Any) -> None:
                self._names = [tool.name for tool in tools] or [SCREENSHOT_TOOL]
                self._several = bool(tools)

            async def start(self) -> None: ...

            async def shutdown(self) -> None: ...

            async def decide(self, history: Sequence[str], utterance: str) -> Decision:
                asked = [name for name in self._names if rule(name, utterance)]
                calls = tuple(ToolProbability(name, 0.9) for name in asked) if self._several else ()
                return Decision(SCREENSHOT_TOOL in asked, 0.9, calls)

        monkeypatch.setattr(measuring, "ToolClassifier", Ruled)

    return set_rule


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint("bert", tmp_path / "model", names=NAMES, independent=True)


@pytest.fixture
def utterances(tmp_path: Path) -> Path:
    path = tmp_path / "utterances.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def prepared(model: Path, utterances: Path | None = None, environment: dict[str, str] | None = None) -> Run:
    request = BuildRequest(tool=str(model), lanes=("cpu",), tool_utterances=utterances, out=model.parent / "artifact")
    return Run(prepare(request, model.parent / "cache", environment or {}), RecordedProgress())


def shown(metadata: artifact.BuildMetadata) -> str:
    console = Console(file=StringIO(), width=200)
    show_artifact(metadata, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_without_utterances_other_tools_are_said_to_be_not_measured(decides, model: Path) -> None:
    decides(right)
    run = prepared(model)
    told = {decision.name: decision.value for decision in run.plan.decisions}
    assert told["not measured"] == "play_music, set_timer"
    assert told["measured"] == SCREENSHOT_TOOL
    folder, metadata = run.validate()
    assert metadata.validation is not None
    assert metadata.validation.not_measured == ("tool_accuracy:play_music", "tool_accuracy:set_timer")
    names = {gate.name for gate in metadata.validation.gates}
    assert not names & set(metadata.validation.not_measured)
    for text in (shown(metadata), str(card(metadata, "acme/tools"))):
        lines = [line for line in text.splitlines() if "not measured" in line]
        assert len(lines) == 2
        assert not any("pass" in line for line in lines)
    # What is written is read again, and what knows nothing of it leaves it out.
    metadata.write(folder)
    assert artifact.read(folder).validation == metadata.validation


def test_a_tool_without_utterances_that_is_always_asked_for_is_refused(decides, model: Path) -> None:
    decides(lambda tool, text: tool == "set_timer" or right(tool, text))
    with pytest.raises(GateError) as failed:
        prepared(model).validate()
    assert [gate.name for gate in failed.value.gates] == ["tool_silence", "tool_silence:set_timer"]
    assert failed.value.classifier_alone


@pytest.mark.parametrize("by", ["option", "variable"])
def test_the_users_utterances_measure_each_tool(decides, model: Path, utterances: Path, by: str) -> None:
    decides(right)
    option = utterances if by == "option" else None
    run = prepared(model, option, {} if option else {"TOOL_UTTERANCES": str(utterances)})
    measured = [decision for decision in run.plan.decisions if decision.name == "measured"]
    assert [decision.value for decision in measured] == ["play_music, set_timer", SCREENSHOT_TOOL]
    assert str(len(ROWS)) in measured[0].reason
    _, metadata = run.validate()
    assert metadata.validation is not None
    gates = {gate.name: gate for gate in metadata.validation.gates}
    for name in NAMES[1:]:
        gate = gates[f"tool_accuracy:{name}"]
        assert (gate.value, gate.relation, gate.threshold) == (1.0, ">=", gate_specs.LEAST_TOOL_ACCURACY)
    assert metadata.validation.not_measured == ()
    assert metadata.validation.utterances_sha256 is not None
    assert "not measured" not in shown(metadata)


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        # Of 84 utterances 12 ask for music: one that never fires is right on 86 of a hundred.
        (lambda tool, text: tool != "play_music" and right(tool, text), "play_music"),
        (lambda tool, text: tool == "set_timer" or right(tool, text), "set_timer"),
        (lambda tool, text: right({"play_music": "set_timer"}.get(tool, tool), text), "play_music"),
    ],
)
def test_a_tool_that_is_never_always_or_wrongly_asked_for_fails_by_itself(
    decides, model: Path, utterances: Path, rule: Rule, wrong: str
) -> None:
    decides(rule)
    with pytest.raises(GateError) as failed:
        prepared(model, utterances).validate()
    assert [gate.name for gate in failed.value.gates] == ["tool_accuracy", f"tool_accuracy:{wrong}"]


def test_a_file_that_cannot_be_used_is_refused_by_the_plan_with_its_line(model: Path, utterances: Path) -> None:
    utterances.write_text('{"text": "a", "label": "dance"}\n')
    with pytest.raises(WrongRequestError, match=r"--tool-utterances: expected labels of .*line 1: 'dance'"):
        prepared(model, utterances)
    utterances.write_text("hello\n")
    with pytest.raises(WrongRequestError, match=r"TOOL_UTTERANCES: expected a JSONL file.*line 1"):
        prepared(model, None, {"TOOL_UTTERANCES": str(utterances)})
    request = BuildRequest(chat="embedded", lanes=("cpu",), tool_utterances=utterances)
    with pytest.raises(WrongRequestError, match="--tool-utterances: expected a classifier"):
        prepare(request, model.parent / "cache", {})


def test_other_utterances_are_another_proof(decides, model: Path, utterances: Path) -> None:
    decides(right)
    _, first = prepared(model, utterances).validate()
    # The same classifier would fail on these, so that the earlier figures may not stand for it.
    utterances.write_text("".join(json.dumps(row | {"text": row["text"][::-1]}) + "\n" for row in ROWS))
    assert first.validation is not None
    with pytest.raises(GateError):
        prepared(model, utterances).validate()


def test_an_artifact_is_proven_again_on_utterances(decides, model: Path, utterances: Path) -> None:
    decides(right)
    run = prepared(model)
    place = run.finish(*run.validate())
    cache = model.parent / "cache"
    again = revalidate.revalidate(place, None, {}, cache, RecordedProgress(), utterances)
    assert again.validation is not None
    assert again.validation.not_measured == ()
    assert "tool_accuracy:play_music" in {gate.name for gate in again.validation.gates}
    verify.check_proven(place)
    utterances.write_text('{"text": "a", "label": "dance"}\n')
    with pytest.raises(WrongRequestError, match="--tool-utterances: expected labels of"):
        revalidate.revalidate(place, None, {}, cache, RecordedProgress(), utterances)


def test_a_classifier_without_a_screenshot_is_measured_on_the_users_utterances_alone(
    decides, model: Path, utterances: Path
) -> None:
    decides(right)
    config = model / "config.json"
    names = {"0": "none", "1": "weather", "2": "play_music", "3": "set_timer"}
    labels = {name: int(index) for index, name in names.items()}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"id2label": names, "label2id": labels}))
    decides(lambda tool, text: tool != "weather" and right(tool, text))
    _, metadata = prepared(model, utterances).validate()
    assert metadata.validation is not None
    assert metadata.validation.not_measured == ("tool_accuracy:weather",)
    # And where nothing is measured, nothing is said to be right.
    _, bare = prepared(model).validate()
    assert bare.validation is not None
    assert not any(gate.name.startswith("tool_accuracy") for gate in bare.validation.gates)
    assert len(bare.validation.not_measured) == 3


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_is_measured_on_the_users_utterances_too(decides, tmp_path: Path, label: int) -> None:
    model = checkpoint("bert", tmp_path / "model", names=("no", "yes"))
    path = tmp_path / "own.jsonl"
    rows = [{"text": f"look {n}", "label": "yes"} for n in range(10)]
    rows += [{"text": f"hi {n}", "label": "no"} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    decides(lambda _, text: text.startswith("look") == (label == 1))
    if label == 1:
        _, metadata = prepared(model, path).validate()
        assert metadata.validation is not None
        assert {gate.name: gate.value for gate in metadata.validation.gates}["tool_accuracy"] == 1
        assert not failures(metadata.validation)
        return
    with pytest.raises(GateError):
        prepared(model, path).validate()


def test_the_plans_bounds_are_those_of_validate_alone(decides, model: Path, utterances: Path) -> None:
    for file in (None, utterances):
        run = prepared(model, file)
        _, metadata = run.build()
        assert run.plan.tool is not None
        candidate = validating.candidate_of(metadata, compared=False, utterances=run.plan.tool.utterances)
        assert run.plan.thresholds == default_thresholds(candidate)
        assert (gate_specs.TOOL_SILENCE in run.plan.thresholds) == (file is None)


def test_a_folder_without_the_classifiers_config_is_one_line(decides, model: Path, utterances: Path) -> None:
    decides(right)
    run = prepared(model)
    place = run.finish(*run.validate())
    (place / "tool" / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"config\.json"):
        revalidate.revalidate(place, None, {}, model.parent / "cache", RecordedProgress(), utterances)
