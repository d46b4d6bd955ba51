"""The proof itself, mutated: for each gate something broken that it alone refuses, and nothing passes without it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.embedded.texts import known_prompts
from pipeline.lanes import LANES, gate_specs, lane_of_artifact
from pipeline.lanes.gate_specs import OPTIONS, SPECS, Candidate
from pipeline.lanes.gates import default_thresholds, failed_gates, gates_of, inapplicable_bounds, missing_bounds
from pipeline.publish.reports.validation_status import validation_status
from pipeline.stages.stage import StageError
from pipeline.validate import chat_figures
from pipeline.validate import validation as validating
from pipeline.validate.scores import Scores
from pipeline.validate.tool_accuracy import ToolFigures
from pipeline.validate.validation import candidate_of, validate
from runtime import artifact, engines
from runtime.artifact import (
    ArtifactError,
    BuildMetadata,
    ChatModel,
    EngineChoices,
    Gate,
    Limits,
    ToolLabel,
    TunedOptions,
    TuningKey,
    Validation,
)
from runtime.artifact.checks.contents import check_contents
from runtime.artifact.checks.gates import PARTS, check_validation, expected_gates
from runtime.artifact.hashes import digest_of, hash_folder
from runtime.engines import Delta, Sampling, TokenScore
from tests.harness.builds.progress import RecordedProgress
from tests.harness.models import tiny
from tests.hub.golden import proof_of

GOLDEN = Path(__file__).resolve().parents[3] / "data" / "artifacts"
FOLDERS = ("cpu-int8", "vllm-fp8", "tool-only")
# What no text holds, and the scripted model holds for all but impossible.
GARBAGE = 10**6
TUNED = TunedOptions(
    goal="latency",
    key=TuningKey(engine="e", torch=None, driver=None, gpu=None, gpu_memory_bytes=None, tensor_parallel_size=1),
    choices=EngineChoices(cudagraph_mode="FULL"),
    noise=0.01,
    candidates=(),
)
NO_FIGURES = (math.nan, math.inf, -math.inf, -1.0)


class Model:
    """An engine that is sound, but for what a test breaks."""

    def __init__(self, **broken: Any) -> None:
        self.broken = broken
        self.text = " ".join(word for known in known_prompts() for word in known.must_contain_any)

    async def start(self) -> None: ...

    async def shutdown(self) -> None: ...

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, each: Callable[[Delta], None], salt: str | None = None
    ) -> None:
        if sampling.max_tokens == 1:  # what comes next, with a long prompt or a short one
            right = self.broken.get("knows", lambda length: True)(len(prompt))
            each(Delta("x", 1, "length", token_ids=[FOLLOWS[tuple(prompt[-40:])] if right else -1]))
            return
        if sampling.ignore_eos:  # under load, and where speed is measured
            each(Delta("x", 1, token_ids=[GARBAGE if self.broken.get("garbles") else 1]))
        await asyncio.sleep(self.broken.get("first", 0))
        each(Delta(self.broken.get("text", self.text), 1))
        await asyncio.sleep(self.broken.get("between", 0))
        each(Delta(" And", 1, self.broken.get("ends", "stop")))

    async def score(self, tokens: Sequence[int]) -> list[TokenScore]:
        logprob, other = self.broken.get("logprob", -2.0), self.broken.get("choice", 0)
        return [TokenScore(-90.0 if token == GARBAGE else logprob, token + other) for token in tokens[1:]]


# What stands behind the last tokens of each prompt of the long text.
FOLLOWS: dict[tuple[int, ...], int] = {}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildMetadata]:
    """A folder that can be validated, whose prompts may be long."""
    folder = tiny.tokenizer(tmp_path_factory.mktemp("artifact"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    files = hash_folder(folder)
    golden = artifact.read(GOLDEN / "cpu-int8")
    limits = Limits(max_batch_size=2, max_input_len=1500, max_output_len=80, max_model_len=1600)
    assert isinstance(golden.chat, ChatModel)
    chat = golden.chat.model_copy(update={"limits": limits, "engine_options": TUNED})
    return folder, golden.model_copy(
        update={"chat": chat, "files": files, "digest": digest_of(files), "validation": None}
    )


@pytest.fixture
def measured(made: tuple[Path, BuildMetadata], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Validate the folder with an engine and a classifier that are sound, but for what is broken."""
    folder, metadata = made
    text = chat_figures.long_prompt_of

    def follows(*given: Any) -> Any:
        prompt = text(*given)
        assert prompt is not None
        FOLLOWS.update({tuple(prompt.tokens[end - 40 : end]): prompt.tokens[end] for end in prompt.ends})
        return prompt

    monkeypatch.setattr(chat_figures, "long_prompt_of", follows)

    def run(accuracy: float = 1.0, silence: float = 1.0, bounds: dict | None = None, **broken: Any) -> Validation:
        tools = (ToolLabel(label=1, name="take_screenshot"), ToolLabel(label=2, name="music"))
        assert metadata.tool is not None
        described = metadata.model_copy(update={"tool": metadata.tool.model_copy(update={"tools": tools})})
        figures = ToolFigures({"take_screenshot": accuracy}, {"music": silence})
        monkeypatch.setattr(validating, "measure_tools", lambda *_: figures)
        import runtime.engines.vllm.engine

        monkeypatch.setattr(runtime.engines.vllm.engine, "VllmEngine", lambda *_: Model())
        reference = tmp_path / "scores.json"
        options = engines.EngineOptions(max_model_len=1600)
        chat_figures.measure_reference(folder, reference, engine="vllm", options=options, progress=RecordedProgress())
        monkeypatch.setattr(engines, "create", lambda *_: Model(**broken))
        candidate = candidate_of(described, compared=True, parameters=10**8)
        # Bounds of time that no busy machine reaches, unless one is asked for.
        slow = {gate_specs.TTFT: 1e9, gate_specs.ITL: 1e9, gate_specs.THROUGHPUT: 1e-9}
        thresholds = {**default_thresholds(candidate), **slow, **(bounds or {})}
        assert missing_bounds(thresholds, candidate) == []
        return validate(folder, described, reference=reference, thresholds=thresholds, progress=RecordedProgress())

    return run


def test_what_is_sound_passes_every_gate(measured) -> None:
    validation = measured()
    assert failed_gates(validation) == ()
    bounded = {gate.name.partition(":")[0] for gate in validation.gates if gate.relation}
    assert bounded == {spec.name for spec in SPECS if spec.relation}


# For each gate with a bound, what it alone refuses.
BROKEN: dict[str, dict[str, Any]] = {
    "known_prompts": {"text": "mumble"},
    "replies_end": {"ends": "length"},
    "perplexity_ratio": {"logprob": -2.5},
    "top1_agreement": {"choice": 1},
    "long_prompt_ratio": {"knows": lambda length: length < 600},
    "text_under_load": {"garbles": True, "bounds": {gate_specs.WORST_UNDER_LOAD: 99.0}},
    "text_under_load_worst": {"garbles": True, "bounds": {gate_specs.TEXT_UNDER_LOAD: 99.0}},
    "ttft_p50": {"first": 0.05, "bounds": {gate_specs.TTFT: 20.0}},
    "itl_p50": {"between": 0.05, "bounds": {gate_specs.ITL: 20.0}},
    "throughput": {"first": 0.05, "bounds": {gate_specs.THROUGHPUT: 1e4}},
    "tool_accuracy": {"accuracy": 0.05},
    "tool_silence": {"silence": 0.05},
}


def test_every_gate_has_something_broken_that_it_refuses() -> None:
    assert BROKEN.keys() == {spec.name for spec in SPECS if spec.relation}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused_by_its_gate_alone(measured, name: str) -> None:
    failed = failed_gates(measured(**BROKEN[name]))
    assert {gate.name.partition(":")[0] for gate in failed} == {name}


@pytest.mark.parametrize(
    "broken",
    [
        {"logprob": math.nan},
        {"logprob": math.inf},
        {"logprob": -math.inf},
        {"logprob": 0.5},
        {"logprob": -1e9},
        {"accuracy": math.nan},
        {"silence": math.nan},
    ],
)
def test_what_is_no_number_proves_nothing(measured, broken: dict[str, Any]) -> None:
    told = ""
    try:
        failed = failed_gates(measured(**broken))
    except StageError as error:
        failed, told = (), str(error)
    assert failed or told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"logprobs": [], "top_tokens": []}, "a token for each"),
        ({"logprobs": [-1.0], "top_tokens": []}, "a token for each"),
        ({"logprobs": [-1.0, math.nan], "top_tokens": [1, 2]}, "1 of 2 that are no number"),
        ({"logprobs": [True], "top_tokens": [1]}, "no numbers"),
        ({"logprobs": ["-1"], "top_tokens": [1]}, "no numbers"),
        ({"logprobs": [None], "top_tokens": [1]}, "no numbers"),
        ({"logprobs": [-1.0], "top_tokens": [1.5]}, "no numbers"),
        ({"logprobs": [-1.0], "top_tokens": [True]}, "no numbers"),
        ({"logprobs": [-1.0], "top_tokens": [-4]}, "a negative one"),
        ({"logprobs": [3.0], "top_tokens": [1]}, "logarithms"),
        ({"logprobs": [-math.inf], "top_tokens": [1]}, "logarithms"),
        ({"logprobs": -1.0, "top_tokens": [1]}, "TypeError"),
        ({"logprobs": [-1.0]}, "KeyError"),
    ],
)
def test_scores_that_are_none_are_not_read(tmp_path: Path, document: dict[str, Any], why: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"windows_sha256": "0" * 64, **document}))
    with pytest.raises(StageError, match=why):
        Scores.read(path)


def proven(name: str) -> BuildMetadata:
    metadata = artifact.read(GOLDEN / name)
    return metadata.model_copy(update={"validation": proof_of(metadata)})


EXPECTED = [(name, gate) for name in FOLDERS for gate in expected_gates(artifact.read(GOLDEN / name))]


def refused(metadata: BuildMetadata) -> str:
    with pytest.raises(ArtifactError) as caught:
        check_validation(metadata)
    assert "\n" not in str(caught.value)
    assert not validation_status(metadata).valid
    return str(caught.value)


@pytest.mark.parametrize("name", FOLDERS)
def test_with_every_gate_an_artifact_is_served(name: str) -> None:
    check_validation(proven(name))
    check_validation(artifact.read(GOLDEN / name))


@pytest.mark.parametrize(("name", "gate"), EXPECTED)
def test_a_gate_that_is_not_there_or_says_nothing_is_no_proof(name: str, gate: str) -> None:
    metadata = proven(name)
    assert metadata.validation is not None
    whole = metadata.validation
    [mine] = [one for one in whole.gates if one.name == gate]
    others = tuple(one for one in whole.gates if one.name != gate)

    def told(*gates: Gate) -> str:
        return refused(metadata.model_copy(update={"validation": whole.model_copy(update={"gates": gates})}))

    assert gate in told(*others) if others else True
    assert gate in told(mine, *others, mine)
    for value in NO_FIGURES:
        assert gate in told(mine.model_copy(update={"value": value}), *others)
    if mine.relation is not None:
        assert gate in told(Gate(name=gate, value=mine.value), *others)
        turned = ">=" if mine.relation == "<=" else "<="
        assert gate in told(mine.model_copy(update={"relation": turned}), *others)
        for bound in NO_FIGURES[:3]:
            assert gate in told(mine.model_copy(update={"threshold": bound}), *others)


# What no measurement can find, whatever bound it is held to.
IMPOSSIBLE = {
    "files_verified": (0.0,),
    "known_prompts": (7.0,),
    "replies_end": (1.01,),
    "top1_agreement": (100.0,),
    "tool_accuracy": (2.0,),
    "tool_silence": (2.0,),
    "held_out_tokens": (0.0, 0.5),
    "perplexity": (0.0, 0.9),
    "perplexity_ratio": (0.0,),
}


@pytest.mark.parametrize(("name", "gate"), EXPECTED)
def test_a_figure_that_cannot_be_is_no_proof(name: str, gate: str) -> None:
    metadata = proven(name)
    relation = expected_gates(metadata)[gate]
    for value in IMPOSSIBLE.get(gate.partition(":")[0], ()):
        bound = None if relation is None else {"<=": 9.0, ">=": 0.0}[relation]
        wrong = Gate(name=gate, value=value, relation=relation, threshold=bound)
        assert gate in refused(metadata.model_copy(update={"validation": proof_of(metadata, wrong)}))


def test_figures_that_are_parts_are_known_to_the_server() -> None:
    assert {spec.name for spec in SPECS if spec.most == 1.0} == PARTS


def test_an_artifact_of_nothing_is_refused() -> None:
    nothing = proven("tool-only").model_copy(update={"tool": None, "chat": None})
    with pytest.raises(ArtifactError, match="found neither"):
        check_contents(nothing)


def test_a_tool_that_is_said_to_be_unmeasured_must_have_been_silent() -> None:
    metadata = proven("tool-only")
    assert metadata.tool is not None
    table = (ToolLabel(label=1, name="take_screenshot"), ToolLabel(label=2, name="music"))
    several = metadata.model_copy(update={"tool": metadata.tool.model_copy(update={"tools": table})})
    assert "tool_accuracy" in refused(several)
    check_validation(several.model_copy(update={"validation": proof_of(several)}))

    def unmeasured(*names: str) -> BuildMetadata:
        said = proof_of(several).model_copy(update={"not_measured": tuple(f"tool_accuracy:{n}" for n in names)})
        return several.model_copy(update={"validation": said})

    silent = unmeasured("music")
    assert "tool_silence" in refused(silent)
    proof = proof_of(silent).model_copy(update={"not_measured": ("tool_accuracy:music",)})
    check_validation(silent.model_copy(update={"validation": proof}))
    # The screenshot can be measured always: saying that it was not does not help.
    assert "tool_accuracy" in expected_gates(unmeasured("take_screenshot", "music"))


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("prequantized", [False, True])
@pytest.mark.parametrize("engine", ["vllm", "trt", "trt-pytorch"])
def test_the_server_asks_for_the_gates_that_the_pipeline_makes(name: str, prequantized: bool, engine: str) -> None:
    metadata = artifact.read(GOLDEN / name)
    if metadata.chat is None and engine != "vllm":
        return
    lane = "trt" if engine.startswith("trt") else metadata.lane
    if metadata.chat is not None:
        stored = metadata.chat.quantization.model_copy(update={"prequantized": prequantized})
        chat = metadata.chat.model_copy(update={"quantization": stored})
        metadata = metadata.model_copy(update={"chat": chat, "lane": lane, "engine": engine})
    candidate = candidate_of(metadata, compared=metadata.chat is not None and not prequantized)
    assert candidate.lane is lane_of_artifact(metadata.lane, metadata.engine)
    made = {spec.name: spec.relation for spec in SPECS if spec.applies_to(candidate)}
    # How many streams there were is told beside the throughput, and proves nothing.
    made.pop("throughput_streams", None)
    assert expected_gates(metadata) == made


@given(st.sampled_from(sorted(OPTIONS, key=str)), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_bound_that_everything_meets_is_refused(spec: gate_specs.GateSpec, bound: float) -> None:
    candidate = Candidate(LANES["cpu"], chat=True, method="int8", prompt_tokens=5525, classifier="embedded")
    candidate = replace(candidate, tools_unmeasured=True)
    problems = inapplicable_bounds(candidate, {spec: bound})
    assert [problem.where for problem in problems] == [OPTIONS[spec].name]
    # And what came through all the same is no proof.
    assert not gates_of({spec: 1.0}, {spec: bound})[0].passed


@pytest.mark.parametrize("value", [True, "0.9", None, [1.0]])
def test_a_figure_in_metadata_is_a_number(tmp_path: Path, value: Any) -> None:
    document = json.loads((GOLDEN / "cpu-int8" / artifact.METADATA_NAME).read_text())
    document["validation"]["gates"][0]["value"] = value
    document["seal"] = artifact.seal_of(document)
    (tmp_path / artifact.METADATA_NAME).write_bytes(artifact.encode(document))
    with pytest.raises(ArtifactError, match="validation"):
        artifact.read(tmp_path)


@pytest.mark.parametrize("missing", ["relation", "threshold"])
def test_half_a_bound_is_none(tmp_path: Path, missing: str) -> None:
    document = json.loads((GOLDEN / "cpu-int8" / artifact.METADATA_NAME).read_text())
    gate = next(gate for gate in document["validation"]["gates"] if gate["relation"])
    gate[missing] = None
    document["seal"] = artifact.seal_of(document)
    (tmp_path / artifact.METADATA_NAME).write_bytes(artifact.encode(document))
    with pytest.raises(ArtifactError, match="validation"):
        artifact.read(tmp_path)
