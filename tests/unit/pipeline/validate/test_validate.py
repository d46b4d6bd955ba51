"""Validating an artifact: what is measured, in which order, and what a failure says. The engine is a stand-in."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.embedded.texts import known_prompts
from pipeline.lanes import gate_specs as gates
from pipeline.lanes.gate_specs import LEAST_TOOL_ACCURACY
from pipeline.lanes.gates import Thresholds, default_thresholds, failures
from pipeline.stages.stage import StageError
from pipeline.validate import chat_figures
from pipeline.validate import validation as validating
from pipeline.validate.tool_accuracy import ToolFigures, tool_accuracy
from pipeline.validate.validation import validate
from runtime import engines
from runtime.artifact import (
    ArtifactError,
    BuildMetadata,
    ChatModel,
    Limits,
    Platform,
    Quantization,
    Source,
    ToolLabel,
    ToolModel,
)
from runtime.artifact.hashes import digest_of, hash_folder
from runtime.engines import Delta, EngineDeadError, Sampling, TokenScore
from runtime.text.prompt import Budgets, PromptRenderer
from tests.harness.builds.progress import RecordedProgress
from tests.harness.models import tiny
from tests.harness.models.classifiers import checkpoint
from tests.harness.templates import real

BOUNDS: Thresholds = {gates.PERPLEXITY_RATIO: 1.05, gates.TOP1_AGREEMENT: 0.9, gates.KNOWN_PROMPTS: 0.5}


class StandIn:
    """An engine that knows every answer and gives every token the same log-probability."""

    def __init__(self, *, logprob: float = -2.0, text: str = "", ends: str = "stop") -> None:
        self.logprob = logprob
        self.ends = ends
        self.prompts: list[Sequence[int]] = []
        self.samplings: list[Sampling] = []
        self.text = text or " ".join(word for known in known_prompts() for word in known.must_contain_any)
        self.calls: list[str] = []

    async def start(self) -> None:
        self.calls.append("start")

    async def shutdown(self) -> None:
        self.calls.append("shutdown")

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, each: Callable[[Delta], None], cache_salt: str | None = None
    ) -> None:
        self.calls.append("generate")
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        each(Delta(self.text, 1))
        each(Delta(self.text, 1, self.ends))

    async def score(self, tokens: Sequence[int]) -> list[TokenScore]:
        self.calls.append("score")
        return [TokenScore(self.logprob, token) for token in tokens[1:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.tokenizer(tmp_path_factory.mktemp("artifact"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def metadata(folder: Path) -> BuildMetadata:
    files = hash_folder(folder)
    chat = ChatModel(
        source=Source(repo="tiny", content_sha256="0" * 64),
        quantization=Quantization(method="int8", scheme="W8A8"),
        limits=Limits(max_batch_size=4, max_input_len=200, max_output_len=40, max_model_len=256),
        dtype="bfloat16",
    )
    return BuildMetadata(
        lane="cpu",
        engine="vllm",
        created_at="2026-11-22T10:00:00+00:00",
        chat=chat,
        platform=Platform(python="3.11.0", machine="x86_64"),
        files=files,
        digest=digest_of(files),
    )


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch):
    def serve(engine: StandIn) -> StandIn:
        monkeypatch.setattr(engines, "create", lambda *_: engine)
        return engine

    return serve


@pytest.fixture
def reference(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import runtime.engines.vllm.engine

    monkeypatch.setattr(runtime.engines.vllm.engine, "VllmEngine", lambda *_: StandIn())
    path = tmp_path / "scores.json"
    chat_figures.measure_reference(
        folder, path, engine="vllm", options=engines.EngineOptions(max_model_len=256), progress=RecordedProgress()
    )
    return path


def run(folder: Path, metadata: BuildMetadata, reference: Path | None, thresholds: Thresholds = BOUNDS):
    return validate(folder, metadata, reference=reference, thresholds=thresholds, progress=RecordedProgress())


def values(validation) -> dict[str, float]:
    return {gate.name: gate.value for gate in validation.gates}


def test_a_model_like_its_reference_passes(folder: Path, metadata: BuildMetadata, serve, reference: Path) -> None:
    engine = serve(StandIn())
    validation = run(folder, metadata, reference)
    assert validation.passed
    assert validation.digest == metadata.digest
    assert values(validation)["perplexity_ratio"] == 1
    assert values(validation)["top1_agreement"] == 1
    assert values(validation)["known_prompts"] == 1
    assert values(validation)["throughput_streams"] == 4
    assert values(validation)["held_out_tokens"] >= 4000
    assert engine.calls.count("start") == engine.calls.count("shutdown") == 1
    assert engine.calls[-1] == "shutdown"


def test_a_worse_model_fails_and_says_by_how_much(
    folder: Path, metadata: BuildMetadata, serve, reference: Path
) -> None:
    serve(StandIn(logprob=-2.0 - math.log(1.3)))
    assert failures(run(folder, metadata, reference)) == ["perplexity_ratio is 1.3, must be <= 1.05: 0.25 too high"]


def test_a_model_that_knows_nothing_fails(folder: Path, metadata: BuildMetadata, serve, reference: Path) -> None:
    serve(StandIn(text="mumble"))
    assert failures(run(folder, metadata, reference)) == ["known_prompts is 0, must be >= 0.5: 0.5 too low"]


def test_without_a_float_model_perplexity_is_reported_alone(folder: Path, metadata: BuildMetadata, serve) -> None:
    serve(StandIn())
    found = values(run(folder, metadata, None))
    assert found["perplexity"] == pytest.approx(math.exp(2))
    assert "perplexity_ratio" not in found


def test_a_figure_that_an_artifact_must_have_and_has_not_is_no_pass(
    folder: Path, metadata: BuildMetadata, serve, reference: Path
) -> None:
    serve(StandIn(logprob=math.nan))
    with pytest.raises(StageError, match=r"found none for perplexity, perplexity_ratio") as failure:
        run(folder, metadata, reference)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("damage", ["change", "truncate", "remove", "add"])
def test_a_tampered_artifact_is_refused_before_the_engine_starts(
    folder: Path, metadata: BuildMetadata, serve, damage: str
) -> None:
    engine = serve(StandIn())
    weights, added = folder / "model.safetensors", folder / "added.txt"
    content = weights.read_bytes()
    try:
        if damage == "change":
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif damage == "truncate":
            weights.write_bytes(content[:-1])
        elif damage == "remove":
            weights.unlink()
        else:
            added.write_text("x")
        with pytest.raises(ArtifactError, match=r"model\.safetensors|added\.txt") as refusal:
            run(folder, metadata, None)
    finally:
        weights.write_bytes(content)
        added.unlink(missing_ok=True)
    assert engine.calls == []
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("repo", "bound", "told"),
    [
        ("embedded", None, ["tool_accuracy is 0.9, must be >= 0.93: 0.03 too low"]),
        ("embedded", 0.8, []),
        ("someone/classifier", None, []),
        ("someone/classifier", 0.95, ["tool_accuracy is 0.9, must be >= 0.95: 0.05 too low"]),
        ("someone/classifier", 0.97, ["tool_accuracy is 0.9, must be >= 0.97: 0.07 too low"]),
    ],
)
def test_every_classifier_is_measured_and_gated(
    folder: Path, metadata: BuildMetadata, monkeypatch: pytest.MonkeyPatch, repo: str, bound: float | None, told
) -> None:
    measured = ToolFigures({"take_screenshot": 0.9}, {})
    monkeypatch.setattr(validating, "measure_tools", lambda *_: measured)
    tool = ToolModel(source=Source(repo=repo, content_sha256="0" * 64), max_tokens=512)
    alone = metadata.model_copy(update={"chat": None, "tool": tool})
    defaults = default_thresholds(validating.candidate_of(alone, compared=False))
    asked = {} if bound is None else {gates.TOOL_ACCURACY: bound}
    assert defaults[gates.TOOL_ACCURACY] > 0.6
    validation = run(folder, alone, None, {**defaults, **asked})
    assert values(validation)["tool_accuracy"] == 0.9
    assert failures(validation) == told


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.66, 1.0])
def test_a_classifier_that_decides_by_nothing_or_the_other_way_round_fails(
    folder: Path, metadata: BuildMetadata, tmp_path: Path, label: int, threshold: float
) -> None:
    checkpoint("bert", tmp_path / "tool")
    source = Source(repo="someone/classifier", content_sha256="0" * 64)
    tool = ToolModel(source=source, max_tokens=64, positive_label=label, threshold=threshold)
    accuracy = tool_accuracy(tmp_path, tool, "cpu", RecordedProgress())
    assert accuracy < LEAST_TOOL_ACCURACY
    assert accuracy > 1 - LEAST_TOOL_ACCURACY, "nor does its opposite"


@pytest.mark.parametrize("independent", [False, True])
def test_every_tool_of_a_classifier_has_its_gate(
    folder: Path, metadata: BuildMetadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, independent: bool
) -> None:
    checkpoint("bert", tmp_path / "tool", names=("none", "take_screenshot", "play_music"), independent=independent)
    table = (ToolLabel(label=1, name="take_screenshot", threshold=1.0), ToolLabel(label=2, name="music", threshold=0.0))
    tool = ToolModel(
        source=Source(repo="a/b", content_sha256="0" * 64), max_tokens=64, tools=table, positive_label=None
    )
    files = hash_folder(tmp_path)
    alone = metadata.model_copy(update={"chat": None, "tool": tool, "files": files, "digest": digest_of(files)})
    defaults = default_thresholds(validating.candidate_of(alone, compared=False))
    validation = run(tmp_path, alone, None, defaults)
    found = values(validation)
    # The screenshot is never asked for and the music always, whatever is said.
    assert found["tool_accuracy"] == found["tool_accuracy:take_screenshot"] == pytest.approx(142 / 254)
    assert found["tool_silence"] == found["tool_silence:music"] == 0
    # Nothing asks for music, so that how well it is recognized is not known.
    assert "tool_accuracy:music" not in found
    assert validation.not_measured == ("tool_accuracy:music",)
    assert all(gate.threshold == LEAST_TOOL_ACCURACY for gate in validation.gates if gate.name.startswith("tool_"))
    assert [line.partition(" ")[0] for line in failures(validation)] == [
        "tool_accuracy",
        "tool_silence",
        "tool_accuracy:take_screenshot",
        "tool_silence:music",
    ]


def test_a_classifier_that_does_not_load_is_told_in_one_line(folder: Path, metadata: BuildMetadata) -> None:
    tool = ToolModel(source=Source(repo="embedded", content_sha256="0" * 64), max_tokens=512, path="nowhere")
    with pytest.raises(StageError, match="the classifier did not load") as failure:
        run(folder, metadata.model_copy(update={"chat": None, "tool": tool}), None)
    assert "\n" not in str(failure.value)


def test_a_start_that_fails_is_told_in_one_line_and_cleaned_up(folder: Path, metadata: BuildMetadata, serve) -> None:
    class Broken(StandIn):
        async def start(self) -> None:
            raise RuntimeError("Engine core initialization failed.\nSee root cause above.")

    engine = serve(Broken())
    with pytest.raises(StageError, match="the engine did not start: Engine core initialization failed") as failure:
        run(folder, metadata, None)
    assert "\n" not in str(failure.value)
    assert engine.calls == ["shutdown"]


def test_a_death_while_measuring_is_told_and_cleaned_up(folder: Path, metadata: BuildMetadata, serve) -> None:
    class Mortal(StandIn):
        async def score(self, tokens: Sequence[int]) -> list[TokenScore]:
            raise EngineDeadError("the vLLM engine process died")

    engine = serve(Mortal())
    with pytest.raises(StageError, match="the engine died while it was measured"):
        run(folder, metadata, None)
    assert engine.calls[-1] == "shutdown"


def test_a_reference_of_another_tokenizer_is_refused(
    folder: Path, metadata: BuildMetadata, serve, tmp_path: Path
) -> None:
    serve(StandIn())
    other = tmp_path / "scores.json"
    other.write_text('{"windows_sha256": "ff", "logprobs": [-1.0], "top_tokens": [3]}')
    with pytest.raises(StageError, match="expected scores of the windows ff"):
        run(folder, metadata, other)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    options = engines.EngineOptions(max_model_len=256)
    with pytest.raises(StageError, match="expected a tokenizer"):
        chat_figures.measure_reference(
            tmp_path, tmp_path / "scores.json", engine="vllm", options=options, progress=RecordedProgress()
        )


def test_a_model_that_never_stops_fails(folder: Path, metadata: BuildMetadata, serve, reference: Path) -> None:
    serve(StandIn(ends="length"))
    assert failures(run(folder, metadata, reference, {**BOUNDS, gates.REPLIES_END: 0.5})) == [
        "replies_end is 0, must be >= 0.5: 0.5 too low"
    ]
    assert default_thresholds(validating.candidate_of(metadata, compared=True))[gates.REPLIES_END] == 0.5


@pytest.fixture
def thinking(tmp_path: Path, metadata: BuildMetadata) -> tuple[Path, BuildMetadata]:
    """An artifact with the template of Qwen 3.5, which thinks unless told otherwise, and its metadata."""
    return with_template("qwen3_5_think", tmp_path / "artifact", metadata)


def with_template(name: str, folder: Path, metadata: BuildMetadata) -> tuple[Path, BuildMetadata]:
    real.write(name, folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(bytes(1000))
    files = hash_folder(folder)
    return folder, metadata.model_copy(update={"files": files, "digest": digest_of(files)})


def test_known_prompts_are_rendered_as_the_runtime_renders_them(thinking: tuple[Path, BuildMetadata], serve) -> None:
    folder, metadata = thinking
    engine = serve(StandIn())
    run(folder, metadata, None)
    renderer = PromptRenderer(folder, Budgets())
    parts = {"persona": None, "runtime_text": None, "history": ()}
    expected = [renderer.render(**parts, utterance=known.prompt).token_ids for known in known_prompts()]
    assert engine.prompts[: len(expected)] == expected
    assert engine.samplings[0].stop_token_ids == renderer.format.stop_token_ids != ()


def test_what_is_thought_answers_no_known_prompt(thinking: tuple[Path, BuildMetadata], serve) -> None:
    folder, metadata = thinking
    serve(StandIn(text=f"<think>{StandIn().text}"))
    assert values(run(folder, metadata, None))["known_prompts"] == 0


def test_a_model_that_always_thinks_needs_a_budget(tmp_path: Path, metadata: BuildMetadata, serve) -> None:
    folder, metadata = with_template("deepseekv3", tmp_path / "artifact", metadata)
    engine = serve(StandIn(text="</think>" + StandIn().text))
    with pytest.raises(StageError, match="THINKING_MAX_TOKENS"):
        run(folder, metadata, None)
    assert metadata.chat is not None
    metadata = metadata.model_copy(update={"chat": metadata.chat.model_copy(update={"thinking_max_tokens": 20})})
    done = validate(folder, metadata, reference=None, thresholds=BOUNDS, progress=RecordedProgress())
    assert values(done)["known_prompts"] == 1
    assert engine.samplings[0].max_tokens == 40  # twenty to think, and twenty of the forty that are left


def test_what_is_measured_is_what_was_hashed(folder: Path, metadata: BuildMetadata, tmp_path: Path, serve) -> None:
    """The figures of a file that changed meanwhile prove nothing."""
    copied = shutil.copytree(folder, tmp_path / "a")

    class Writing(StandIn):
        async def start(self) -> None:
            with (copied / "model.safetensors").open("r+b") as file:
                file.write(b"others")

    serve(Writing())
    with pytest.raises(
        ArtifactError, match=r"model\.safetensors: expected the file that was checked, found that it chang"
    ):
        run(copied, metadata, None)


@pytest.mark.parametrize("with_code", [True, False])
def test_code_of_somebody_else_is_not_run_to_measure_it(
    folder: Path, metadata: BuildMetadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_code: bool
) -> None:
    copied = shutil.copytree(folder, tmp_path / "a")
    (copied / "compile_cache").mkdir()
    (copied / "compile_cache" / "x.py").write_text("1/0")
    files = hash_folder(copied)
    assert metadata.chat is not None
    chat = metadata.chat.model_copy(update={"compile_cache": "compile_cache"})
    cached = metadata.model_copy(update={"chat": chat, "files": files, "digest": digest_of(files)})
    given: list[tuple[bool, object]] = []

    def create(view: Path, described: BuildMetadata, *_: object) -> StandIn:
        given.append(((view / "compile_cache").exists(), described.chat and described.chat.compile_cache))
        return StandIn()

    monkeypatch.setattr(engines, "create", create)
    validate(copied, cached, reference=None, thresholds=BOUNDS, progress=RecordedProgress(), with_code=with_code)
    assert given == [(with_code, "compile_cache" if with_code else None)]
