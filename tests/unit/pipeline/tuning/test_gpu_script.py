"""The table that `tests/gpu/tune.py` prints, of scripted figures."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path

import pytest

from pipeline.checkpoint.prequantized import recognize
from pipeline.tuning.candidates import Situation, candidates
from runtime import artifact
from runtime.artifact import EngineChoices, TriedOptions, TunedFigures, TunedOptions, TuningKey
from runtime.engines import EngineOptions
from runtime.engines.tuned import key_of
from runtime.engines.tuned import tuned as options_here
from runtime.host.machine import Gpu, Machine
from tests.gpu import fleet, tune
from tests.gpu.inputs import make_artifact
from tests.gpu.limits import kernels

GOLDEN = Path(__file__).parents[4] / "tests/data/artifacts/vllm-fp8"

KEY = TuningKey(engine="vllm 1", torch="2", driver="5", gpu="H", gpu_memory_bytes=1, tensor_parallel_size=1)
PLAIN = TunedFigures(itl_ms=6.0, ttft_ms=100.0, tokens_per_s=14000, ttft_one_ms=20.0)
FULL = TunedFigures(itl_ms=5.0, ttft_ms=90.0, tokens_per_s=15000, ttft_one_ms=10.0)


def tuned(*candidates: TriedOptions) -> TunedOptions:
    base = TriedOptions(name="base", outcome="base", runs=(PLAIN, PLAIN), kernels=("MarlinLinearKernel",))
    return TunedOptions(goal="latency", key=KEY, noise=0.01, candidates=(base, *candidates))


FULL_WON = TriedOptions(name="full", options=EngineChoices(cudagraph_mode="FULL"), outcome="won", runs=(FULL,))
LOST = TriedOptions(name="lost", outcome="failed", reason="no such kernel")


def test_each_row_has_ratios_the_share_of_the_roofline_and_the_kernels() -> None:
    base, full, lost = tune.rows_of(tuned(FULL_WON, LOST), 4.0)
    assert base.ratios == dict.fromkeys(base.ratios, 1.0)
    assert base.kernels == ("MarlinLinearKernel",)
    assert base.roofline == pytest.approx(4 / 6)
    assert (full.ratios["ttft_one_ms"], full.ratios["ttft_ms"], full.roofline) == (0.5, 0.9, 0.8)
    assert (lost.figures, lost.roofline) == ({}, None)
    lines = tune.table([base, full, lost])
    assert len({line.count("|") for line in lines}) == 1
    assert "0.500" in lines[3]
    assert "no such kernel" in lines[4]


def test_targets_are_told_by_the_best_row() -> None:
    lines = tune.against_targets(tune.rows_of(tuned(FULL_WON, LOST), 4.0), "none")
    assert [line.endswith(" met") for line in lines] == [True, False, True, True]
    assert lines[1].startswith("TTFT, 64 together, ms: 0.900 × (full), at most 0.8: NOT MET")
    assert tune.against_targets(tune.rows_of(tuned(LOST), None), "none") == []


def test_candidates_are_picked_by_name_or_a_part_of_it() -> None:
    table = candidates(Situation(90, "awq", 256, 256, 4096))
    for names, wanted in (
        (["full graphs"], {"full graphs"}),
        (["MACHETE", "marlin"], {"Machete's products", "Marlin's products"}),
    ):
        assert {one.name for one in tune.picked(table, names) if not one.not_tried} == wanted
    assert tune.picked(table, []) == table
    with pytest.raises(ValueError, match="no candidate is called 'turbo'"):
        tune.picked(table, ["turbo"])


def test_the_lanes_of_a_gpu_host_pick_what_their_names_say() -> None:
    """`everything.sh` has them by names, with commas between and within."""
    script = (Path(__file__).parents[4] / "tests/gpu/everything.sh").read_text("utf-8")
    lanes = re.findall(r'tuned (\w+) "[^"]+" "([^"]+)"', script)
    assert [method for method, _ in lanes] == ["none", "fp8", "awq"] * 2
    for method, text in lanes:
        names = tune.names_in(text)
        table = candidates(Situation(90, method, 256, 320, 4096))
        asked = [one.name for one in tune.picked(table, names) if not one.not_tried]
        assert len(asked) == len(names), (method, names, asked)


HOST = Machine(gpus=(Gpu("NVIDIA H100 80GB HBM3", 90, 80 << 30, 80 << 30),), driver="580", packages={"vllm": "0.31.0"})


@pytest.mark.parametrize("name", ["full graphs", "full graphs, steps of 512 tokens", "steps of 512"])
def test_an_artifact_for_measuring_serves_with_what_was_chosen(name: str) -> None:
    sealed = make_artifact.chosen(name, "none", make_artifact.LIMITS, HOST)
    assert name in sealed.candidates[0].name
    chat = artifact.read(GOLDEN).chat
    assert chat is not None
    chat = chat.model_copy(update={"engine_options": sealed})
    served = options_here(EngineOptions(), chat, key_of(HOST, make_artifact.LIMITS))
    assert served.options.cudagraph_mode == "FULL"
    assert not served.left


@pytest.mark.parametrize("name", ["steps", "Machete's products", "nothing"])
def test_a_name_of_several_or_none_is_refused_before_anything_is_compiled(name: str) -> None:
    with pytest.raises(SystemExit, match="expected the name of one of these: full graphs; "):
        make_artifact.chosen(name, "none", make_artifact.LIMITS, HOST)


def test_engines_whose_kernels_are_compared_have_weights_as_the_pipeline_writes_them(tmp_path: Path) -> None:
    """Read back as the pipeline reads a model that comes quantized."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2}))
    found = {}
    assert all(len({case.name for case in table}) == len(table) for table in kernels.CASES.values())
    for number, case in enumerate(chain(*kernels.CASES.values())):
        folder = tmp_path / str(number)
        folder.mkdir()
        kernels.folder_of(case, tmp_path, folder)
        known = recognize(json.loads((folder / "config.json").read_text()), "8b", bytes_per_weight=None)
        assert known is not None
        found[case.weights] = (known.scheme, known.symmetric)
    assert found == {"fp8": ("FP8", True), "int4": ("W4A16", False), "int4 symmetric": ("W4A16", True)}
    # As the safetensors of the same shape had it, quantized by the pipeline (docs/performance.md).
    assert round(kernels.bytes_per_step("fp8", 49152) / 1e9, 2) == 7.38
    assert round(kernels.bytes_per_step("int4", 49152) / 1e9, 2) == 4.03


def test_a_router_is_told_by_its_threads() -> None:
    assert [fleet.threads_in(name) for name in ("2", "2-busy", "16-busy")] == [2, 2, 16]
    for name in ("busy", "2-buzy", "2 busy", ""):
        with pytest.raises(ValueError, match="--routers: expected names such as 2 or 4-busy"):
            fleet.threads_in(name)
