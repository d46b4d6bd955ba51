"""The whole TensorRT-LLM lane through the stand-in: plan, quantize, build, validate, and a turn over WebSocket."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pipeline import hints, revalidate
from pipeline.lanes import gate_specs as gates
from pipeline.plan import BuildRequest
from pipeline.plan.prepare import Prepared, prepare
from pipeline.problem import WrongRequestError
from pipeline.run import GateError, Run
from pipeline.stages.recipe import NOT_COUNTED, OURS, closure
from pipeline.stages.recipes import recipe_inputs
from pipeline.stages.stage import StageError
from pipeline.steps.stage_runner import StageRunner, Work
from runtime import artifact
from runtime.artifact import ArtifactError, BuildMetadata, hashes, verify
from runtime.deployment.settings import SettingsError
from runtime.engines.trt.folders import EngineFolder
from runtime.host import machine
from runtime.host.cuda import Failure
from runtime.server.service import Phase
from tests.harness.builds.progress import RecordedProgress
from tests.harness.scripted import Running, serving
from tests.harness.trt.lane import H200, LABEL, installed, model, quantizer_python
from tests.harness.waiting import eventually

# Short held-out texts: the stand-in's arithmetic needs no more.
TEXTS = ["The kettle sings on the stove while somebody reads the paper aloud.", "Rain again."]
BOUNDS = {gates.KNOWN_PROMPTS: 0.0}
GOLDEN = Path(__file__).parents[2] / "data/trt"


@pytest.fixture(scope="module")
def patches() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, patches: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("trt")
    # A path that TensorRT-LLM's quantizer would take for another kind of model, and code that it would run.
    source = model(folder / "prompts/model", auto_map={"AutoModelForCausalLM": "code.Model"})
    (source / "code.py").write_text("raise SystemExit('the model ran its own code')")
    quantizer_python(folder)
    sample = "says something about tea, about kettles and about the weather on a long afternoon in June."
    (folder / "calibration.txt").write_text("\n\n".join(f"Sample {n} {sample}" for n in range(40)))
    patches.setattr("pipeline.validate.chat_figures.heldout_texts", lambda: TEXTS)
    patches.setattr("pipeline.plan.hardware._packages_of", lambda _: dict(H200.packages))
    with installed(patches):
        yield folder


def environment(workplace: Path, **variables: str) -> dict[str, str]:
    return {
        "QUANTIZE_PYTHON": str(workplace / "quantizer-python"),
        "AWQ_CALIB_DATASET": str(workplace / "calibration.txt"),
        "AWQ_CACHE_DIR": str(workplace / "cache"),
        "TRT_MAX_BATCH_SIZE": "16",
        "TRT_MAX_INPUT_LEN": "700",
        "TRT_MAX_OUTPUT_LEN": "90",
        **variables,
    }


def prepared(workplace: Path, method: str | None = "4bit", out: str = "artifact", **variables: str) -> Prepared:
    ref = str(workplace / "prompts/model")
    request = BuildRequest(chat=ref, lanes=("trt",), method=method, out=workplace / out, thresholds=BOUNDS)
    return prepare(request, None, environment(workplace, **variables))


def made(work: Prepared) -> tuple[Path, BuildMetadata, list[str]]:
    progress = RecordedProgress()
    run = Run(work, progress)
    folder, metadata = run.validate()
    return run.finish(folder, metadata), metadata, progress.steps


class Traced(dict[str, set[str]]):
    """The modules of ours whose functions were called while a stage worked, in any thread, by the stage's name."""

    def of(self, name: str, work: Work) -> Work:
        called = self.setdefault(name, set())

        def look(frame: FrameType, event: str, _: object) -> None:
            # What runs when a module is imported is not a call of anything in it.
            if event == "call" and frame.f_code.co_name != "<module>":
                called.add(str(frame.f_globals.get("__name__")))

        def traced(out: Path) -> Mapping[str, Any]:
            threading.setprofile(look)
            sys.setprofile(look)
            try:
                return work(out)
            finally:
                sys.setprofile(None)
                threading.setprofile(None)

        return traced


@pytest.fixture(scope="module")
def traced() -> Traced:
    return Traced()


@pytest.fixture(scope="module")
def proven(workplace: Path, traced: Traced) -> Path:
    stage = StageRunner.stage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            StageRunner,
            "stage",
            lambda self, name, inputs, work, **how: stage(self, name, inputs, traced.of(name, work), **how),
        )
        place = made(prepared(workplace))[0]
    # trtllm-build leaves it where it runs.
    assert not Path("model.cache").exists()
    assert not list(place.rglob("model.cache"))
    return place


def test_the_artifact_holds_a_compiled_engine_and_all_that_the_runtime_needs(proven: Path) -> None:
    metadata = artifact.read(proven)
    hashes.verify_files(proven, metadata)
    assert metadata.lane == metadata.engine == "trt"
    assert metadata.chat is not None
    assert metadata.chat.engine_path == f"trt-llm/engines/{LABEL}"
    engine = proven / metadata.chat.engine_path
    for name in ("config.json", "rank0.engine", "tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (engine / name).is_file(), name
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "config.json"):
        assert (proven / name).is_file(), name
    assert not list(proven.glob("*.safetensors"))
    assert metadata.chat.quantization.method == "int4_awq"
    assert metadata.chat.limits.model_dump() == {
        "max_batch_size": 16,
        "max_input_len": 700,
        "max_output_len": 90,
        "max_model_len": 790,
        "tensor_parallel_size": 1,
    }
    assert metadata.platform.sm == 90
    assert metadata.platform.packages["tensorrt-llm"] == "1.2.1"


CALLED = {
    "calibration": "pipeline.steps.quantize_step",
    "quantize": "pipeline.steps.quantize_step",
    "build": "pipeline.run",
    "reference": "runtime.engines.trt.engine",
    "validate": "runtime.engines.trt.engine",
}


@pytest.mark.parametrize("stage", CALLED)
def test_whatever_a_stage_called_is_counted_by_its_recipe(proven: Path, traced: Traced, stage: str) -> None:
    called = {name for name in traced[stage] if name.partition(".")[0] in OURS}
    assert CALLED[stage] in called
    counted = closure(recipe_inputs(stage, "trt").modules).keys() | NOT_COUNTED.keys()
    # The runner hands over what stands in the key, and so does the plan.
    assert called - counted <= {
        "pipeline.run",
        "pipeline.steps.quantize_step",
        "pipeline.steps.stage_runner",
        "pipeline.plan.build_plan",
    }


def test_validation_gates_the_first_choice_and_tells_no_perplexity(proven: Path) -> None:
    validation = artifact.read(proven).validation
    assert validation is not None
    assert validation.passed
    gates = {gate.name: gate for gate in validation.gates}
    assert gates["top1_agreement"].relation == ">="
    assert gates["top1_agreement"].value == 1.0
    assert "perplexity" not in gates
    assert "perplexity_ratio" not in gates
    assert gates["throughput_streams"].value == 16


def test_an_artifact_is_proven_again_where_it_lies(workplace: Path, proven: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(proven, tmp_path / "artifact"))
    before = artifact.read(place)
    source = str(workplace / "prompts/model")
    again = revalidate.revalidate(
        place, source, BOUNDS | {gates.TOP1_AGREEMENT: 1.0}, workplace / "cache", RecordedProgress()
    )
    assert again.validation is not None
    assert again.validation.passed
    assert again.digest == before.digest
    assert {gate.name: gate.threshold for gate in again.validation.gates}["top1_agreement"] == 1.0
    assert again.platform.packages["tensorrt-llm"] == "1.2.1"
    hashes.verify_files(place, artifact.read(place))


def test_the_budget_for_thought_is_recorded_as_it_was_proven(
    workplace: Path, proven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, metadata = Run(prepared(workplace, THINKING_MAX_TOKENS="12"), RecordedProgress()).build()
    assert metadata.chat is not None
    assert metadata.chat.thinking_max_tokens == 12
    place = Path(shutil.copytree(proven, tmp_path / "artifact"))
    source = str(workplace / "prompts/model")

    def again() -> int:
        chat = revalidate.revalidate(place, source, BOUNDS, workplace / "cache", RecordedProgress()).chat
        assert chat is not None
        return chat.thinking_max_tokens

    assert again() == 0
    monkeypatch.setenv("THINKING_MAX_TOKENS", "30")
    assert again() == 30
    # It stays where the environment says nothing, and goes where it says 0.
    monkeypatch.delenv("THINKING_MAX_TOKENS")
    assert again() == 30
    monkeypatch.setenv("THINKING_MAX_TOKENS", "0")
    assert again() == 0
    monkeypatch.setenv("THINKING_MAX_TOKENS", "90")
    with pytest.raises(WrongRequestError, match="THINKING_MAX_TOKENS: expected less than 90"):
        again()


def test_the_float_model_computes_in_the_type_of_the_engine(workplace: Path, proven: Path) -> None:
    import tensorrt_llm._llm as stand_in

    run = Run(prepared(workplace, TRT_DTYPE="bfloat16"), RecordedProgress())
    before = len(stand_in.MADE)
    run.validate()
    loaded = stand_in.MADE[before:]
    assert [(type(llm).__name__, llm.arguments["dtype"]) for llm in loaded] == [
        ("TorchLLM", "bfloat16"),
        ("TrtLLM", "auto"),
    ]


def test_every_variable_reaches_the_call_that_it_is_meant_for(workplace: Path) -> None:
    variables = {
        "TRT_MAX_BATCH_SIZE": "7",
        "TRT_MAX_INPUT_LEN": "611",
        "TRT_MAX_OUTPUT_LEN": "33",
        "TRT_DTYPE": "bfloat16",
        "TRT_AWQ_BLOCK_SIZE": "64",
        "TRT_CALIB_SIZE": "9",
        "TRT_CALIB_SEQLEN": "77",
    }
    run = Run(prepared(workplace, **variables), RecordedProgress())
    assert run.plan.chat is not None
    _, checkpoint, _ = run.quantize(run.plan.chat)
    told = json.loads((checkpoint.folder / "config.json").read_bytes())["stand_in"]
    call = told["call"]
    expected = {
        "dtype": "bfloat16",
        "qformat": "int4_awq",
        "awq_block_size": 64,
        "calib_size": 9,
        "calib_max_seq_length": 77,
        "calib_dataset": "texts",
        "kv_cache_dtype": None,
        "tp_size": 1,
        "model_dir": "model",
    }
    assert {name: call[name] for name in expected} == expected
    assert {len(text) for text in told["texts"]} == {77}
    assert told["algorithm"] == {"method": "smoothquant", "alpha": 0.8}
    folder, metadata = run.build()
    assert metadata.chat is not None
    engine = EngineFolder.read(folder / str(metadata.chat.engine_path))
    assert (engine.max_batch_size, engine.max_input_len, engine.max_seq_len) == (7, 611, 644)
    assert (engine.weights.dtype, engine.weights.group_size, engine.reuses_blocks) == ("bfloat16", 64, True)


@pytest.mark.parametrize("method", ["fp8", "int8_sq"])
def test_the_other_formats_compile_too(workplace: Path, method: str) -> None:
    folder, metadata = Run(prepared(workplace, method), RecordedProgress()).build()
    assert metadata.chat is not None
    assert EngineFolder.read(folder / str(metadata.chat.engine_path)).weights.method == method


def test_engines_are_kept_apart_by_model_format_limits_gpu_and_version(workplace: Path) -> None:
    def build_key(**changes: Any) -> str:
        here = changes.pop("machine", H200)
        method = changes.pop("method", "4bit")
        work = prepared(workplace, method, **changes)
        run = Run(replace(work, hardware=replace(work.hardware, machine=here)), RecordedProgress())
        run.build()
        return run.runner.finished[-1].key

    keys = [
        build_key(),
        build_key(TRT_MAX_BATCH_SIZE="8"),
        build_key(TRT_MAX_INPUT_LEN="699"),
        build_key(method="fp8"),
        build_key(machine=replace(H200, gpus=(replace(H200.gpus[0], sm=89, name="NVIDIA L40S"),))),
        build_key(machine=replace(H200, packages=H200.packages | {"tensorrt-llm": "1.2.0"})),
    ]
    assert len(set(keys)) == len(keys)
    assert build_key() == keys[0]


def test_a_checkpoint_that_exists_is_compiled_without_quantizing(workplace: Path) -> None:
    run = Run(prepared(workplace), RecordedProgress())
    assert run.plan.chat is not None
    checkpoint = run.quantize(run.plan.chat)[1].folder
    work = prepared(workplace, None, "from-checkpoint", TRT_CHECKPOINT_DIR=str(checkpoint))
    place, metadata, steps = made(work)
    assert not [step for step in steps if "quantizing" in step]
    assert metadata.chat is not None
    assert metadata.chat.quantization.method == "int4_awq"
    assert (place / str(metadata.chat.engine_path) / "rank0.engine").is_file()


def test_a_repository_with_a_checkpoint_is_compiled_without_quantizing(workplace: Path) -> None:
    run = Run(prepared(workplace), RecordedProgress())
    assert run.plan.chat is not None
    checkpoint = run.quantize(run.plan.chat)[1].folder
    source = Path(shutil.copytree(workplace / "prompts/model", workplace / "llama-trt-awq"))
    shutil.copytree(checkpoint, source / "trt-llm/checkpoints")
    request = BuildRequest(chat=str(source), lanes=("trt",), out=workplace / "from-repository", thresholds=BOUNDS)
    place, metadata, steps = made(prepare(request, None, environment(workplace)))
    assert not [step for step in steps if "quantizing" in step]
    assert metadata.chat is not None
    assert metadata.chat.quantization.prequantized
    assert metadata.chat.quantization.method == "int4_awq"
    assert (place / str(metadata.chat.engine_path) / "rank0.engine").is_file()
    assert not (place / "trt-llm/checkpoints").exists()


def test_an_engine_that_exists_is_taken_as_it_is_and_needs_no_batch_size(workplace: Path, proven: Path) -> None:
    engine = proven / "trt-llm/engines" / LABEL
    work = prepared(workplace, None, "from-engine", TRTLLM_ENGINE_DIR=str(engine), TRT_MAX_BATCH_SIZE="")
    _, metadata, steps = made(work)
    assert not [step for step in steps if "quantizing" in step or "compiling" in step]
    assert metadata.chat is not None
    assert metadata.chat.limits.max_batch_size == 16


def test_an_engine_that_chooses_otherwise_than_the_float_model_fails_its_gate(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tensorrt_llm._llm as stand_in

    monkeypatch.setattr(stand_in.TrtLLM, "token_after", lambda _, token: (token + 1 + token % 2) % 256)
    work = prepared(workplace, TRT_MAX_BATCH_SIZE="15", TRT_CALIB_SIZE="6")
    with pytest.raises(GateError, match=r"top1_agreement is 0\.[3-7]") as raised:
        Run(work, RecordedProgress()).validate()
    hints.print_next_step(work, raised.value.gates)
    told = capsys.readouterr().err
    assert "try `--fallback fp8`, more samples (TRT_CALIB_SIZE; there were 6), " in told
    assert "or set --min-top1 where that is good enough for you" in told


def test_a_modelopt_folder_goes_to_the_pytorch_backend_as_it_is(workplace: Path) -> None:
    source = model(workplace / "fp8", quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    stated = json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}})
    (source / "hf_quant_config.json").write_text(stated)
    request = BuildRequest(chat=str(source), lanes=("trt",), out=workplace / "pytorch", thresholds=BOUNDS)
    work = prepare(request, None, environment(workplace, TRT_BACKEND="pytorch"))
    place, metadata, _ = made(work)
    assert metadata.engine == "trt-pytorch"
    assert metadata.chat is not None
    assert metadata.chat.engine_path is None
    assert metadata.chat.quantization.prequantized
    assert (place / "model.safetensors").is_file()
    assert (place / "hf_quant_config.json").read_text() == stated
    assert not (place / "trt-llm").exists()
    other = replace(H200, gpus=(replace(H200.gpus[0], sm=89, name="NVIDIA L40S"),))
    with pytest.raises(ArtifactError, match="prove it here with `yap-pipeline validate`"):
        verify.check_artifact(place, other)


def test_a_failed_compilation_fails_the_stage_with_its_last_lines(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_BUILD", "fail")
    before = set((workplace / "cache/build").glob("*/output"))
    with pytest.raises(StageError, match=r"trtllm-build ended with exit code 1: .*OutOfMemory"):
        Run(prepared(workplace, TRT_MAX_BATCH_SIZE="31"), RecordedProgress()).build()
    assert set((workplace / "cache/build").glob("*/output")) == before
    assert not list((workplace / "cache/build").glob("*.partial-*"))


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("fail", "CUDA out of memory while quantizing"),
        ("no gpu", "CUDA error: initialization error"),
        ("other", "expected a checkpoint in int4_awq, found w4a8_awq"),
    ],
)
def test_a_failed_quantization_fails_the_stage_with_its_last_lines(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, how: str, line: str
) -> None:
    monkeypatch.setenv("STAND_IN_QUANTIZE", how)
    with pytest.raises(StageError, match=line):
        Run(prepared(workplace, TRT_CALIB_SIZE="3"), RecordedProgress()).build()


def test_an_engine_with_other_limits_than_planned_fails_the_stage(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_BUILD", "small")
    with pytest.raises(StageError, match="expected an engine with max_batch_size 28, found 14"):
        Run(prepared(workplace, TRT_MAX_BATCH_SIZE="28"), RecordedProgress()).build()


@pytest.mark.parametrize("given", [False, True], ids=["quantize", "build"])
def test_a_gpu_that_cuda_cannot_use_is_diagnosed_before_work_begins(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    variables = {"TRT_CHECKPOINT_DIR": str(GOLDEN / "checkpoints/llama-int4-awq")} if given else {"TRT_CALIB_SIZE": "5"}
    work = prepared(workplace, None, **variables)
    monkeypatch.setattr(
        "runtime.host.cuda.probe", lambda: Failure("cuInit", 999, "CUDA_ERROR_UNKNOWN", "unknown error")
    )
    with pytest.raises(
        StageError, match=r"CUDA_ERROR_UNKNOWN \(999\).*device nodes: .*try \(1\).*\(2\).*\(3\)"
    ) as error:
        Run(work, RecordedProgress()).build()
    assert str(error.value).startswith(f"stage {'build' if given else 'quantize'} failed")


def test_a_flag_that_trtllm_build_does_not_know_fails_the_stage(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.build import trt

    flags = trt.flags
    monkeypatch.setattr(trt, "flags", lambda *arguments: [*flags(*arguments), "--max_output_len", "90"])
    with pytest.raises(StageError, match="unrecognized arguments: --max_output_len"):
        Run(prepared(workplace, TRT_MAX_BATCH_SIZE="30"), RecordedProgress()).build()


# Serving


@asynccontextmanager
async def served(folder: Path, **values: Any) -> AsyncIterator[Running]:
    wanted = {"artifact": str(folder), "inference_engine": "trt", **values}
    async with serving(opened=False, **wanted) as running:
        # The server loads as it starts. Loading here as well would make two engines, and either could be served.
        while running.service.phase is Phase.LOADING:  # noqa: ASYNC110 - the service has no event for it
            await asyncio.sleep(0.005)
        if running.service.ended.done():
            running.service.ended.result()
        yield running


async def test_a_turn_streams_over_websocket(proven: Path) -> None:
    async with served(proven) as running, running.client() as client:
        frames = await client.turn(
            user_utterance="hello", persona_text="You are kind.", sampling={"sanitize_output": False}
        )
        kinds = [frame["type"] for frame in frames]
        assert kinds[0] == "ack"
        assert kinds[-2:] == ["final", "done"]
        assert "".join(frame["text"] for frame in frames if frame["type"] == "token") == frames[-2]["normalized_text"]
        assert frames[-1]["usage"]["finish_reason"] in {"stop", "length"}


async def test_a_cancelled_turn_is_aborted_in_the_engine(proven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt_llm._llm as stand_in

    monkeypatch.setattr(stand_in, "STEP_S", 0.02)
    async with served(proven) as running, running.client() as client:
        llm = stand_in.MADE[-1]
        llm.token_after = lambda token: 70  # a reply without end
        asked = len(llm.requests)
        await client.send(type="start", session_id="s1", user_utterance="hello")
        await client.until("ack")
        await eventually(lambda: len(llm.requests) > asked)
        await client.send(type="cancel")
        done = (await client.until("done"))[-1]
        assert done["cancelled"] is True
        assert llm.requests[-1].aborted()
        await eventually(lambda: not llm.running)


async def test_a_worker_that_dies_fails_the_turn_and_ends_the_service(
    proven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt_llm._llm as stand_in

    monkeypatch.setattr(stand_in, "STEP_S", 0.02)
    async with served(proven) as running, running.client() as client:
        llm = stand_in.MADE[-1]
        llm.token_after = lambda token: 70
        await client.send(type="start", session_id="s1", user_utterance="hello")
        await client.until("ack")
        llm.die()
        frames = await client.until("done")
        assert frames[-1]["failed"] is True
        assert any(frame.get("error_code") == "generation_failed" for frame in frames)
        with pytest.raises(Exception, match="worker died"):
            await asyncio.wait_for(asyncio.shield(running.service.ended), 5)


@pytest.mark.parametrize(
    ("here", "line"),
    [
        (
            replace(H200, gpus=(replace(H200.gpus[0], sm=89, name="NVIDIA L40S"),)),
            r"expected GPU architecture sm90 \(NVIDIA H200\), found sm89 \(NVIDIA L40S\); build an engine",
        ),
        (
            replace(H200, packages=H200.packages | {"tensorrt-llm": "1.2.0"}),
            r"expected tensorrt-llm 1\.2\.1, found 1\.2\.0",
        ),
        (replace(H200, torch_cuda="12.9"), r"expected CUDA 13\.0, found 12\.9"),
        (replace(H200, gpus=()), "found no GPU"),
    ],
)
async def test_another_gpu_version_or_cuda_is_refused_before_a_weight_is_touched(
    proven: Path, monkeypatch: pytest.MonkeyPatch, here: machine.Machine, line: str
) -> None:
    import tensorrt_llm._llm as stand_in

    monkeypatch.setattr(machine, "describe", lambda: here)
    before = len(stand_in.MADE)
    with pytest.raises(ArtifactError, match=line) as refusal:
        async with served(proven):
            pass
    assert "\n" not in str(refusal.value)
    assert len(stand_in.MADE) == before


async def test_a_batch_above_the_baked_one_is_refused(proven: Path) -> None:
    with pytest.raises(ArtifactError, match=r"at most 16 \(baked into the artifact\), found 17"):
        async with served(proven, trt_batch_size=17):
            pass


async def test_a_smaller_batch_reaches_the_engine(proven: Path) -> None:
    import tensorrt_llm._llm as stand_in

    async with served(proven, trt_batch_size=3, trt_kv_free_gpu_frac=0.25, trt_kv_enable_block_reuse=False):
        arguments = stand_in.MADE[-1].arguments
        assert arguments["max_batch_size"] == 3
        assert arguments["kv_cache_config"].free_gpu_memory_fraction == 0.25
        assert arguments["kv_cache_config"].enable_block_reuse is False


async def test_another_lane_is_refused(proven: Path) -> None:
    with pytest.raises(SettingsError, match="INFERENCE_ENGINE: expected trt"):
        async with served(proven, inference_engine="vllm"):
            pytest.fail("it was loaded")
