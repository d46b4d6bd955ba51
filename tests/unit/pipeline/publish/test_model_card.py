"""The model card says what the metadata holds, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipeline.build.awq import describe_awq
from pipeline.publish.model_card import card
from runtime import artifact
from runtime.artifact import BuildMetadata, ChatModel
from tests.hub.artifacts import A100, H100, chat_model, cpu_artifact, engine_artifact

REPO = "acme/llama-8b-int8"
GOLDEN = Path(__file__).resolve().parents[3] / "data" / "artifacts"


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> BuildMetadata:
    return artifact.read(cpu_artifact(tmp_path_factory.mktemp("card") / "artifact", tool=True))


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (0.0, "on held-out text that calibration never saw."),
        (0.25, "25.0% was in the calibration text"),
        (None, "on held-out text."),
    ],
)
def test_the_card_claims_of_the_held_out_text_what_is_known(
    metadata: BuildMetadata, share: float | None, told: str
) -> None:
    assert metadata.chat is not None
    stored = metadata.chat.quantization
    assert stored.calibration is not None

    def with_stored(**changed: object) -> str:
        chat = metadata.chat.model_copy(update={"quantization": stored.model_copy(update=changed)})
        return card(metadata.model_copy(update={"chat": chat}), REPO)

    text = with_stored(calibration=stored.calibration.model_copy(update={"held_out_share": share}))
    assert told in text
    assert ("never saw" in text) == (share == 0)
    assert "never saw" not in with_stored(prequantized=True, calibration=None)
    assert "nothing was calibrated" in with_stored(calibration=None)


def test_the_front_matter_is_what_the_hub_reads(metadata: BuildMetadata) -> None:
    data = ModelCard(card(metadata, REPO)).data
    assert (data.license, data.base_model, data.pipeline_tag) == ("apache-2.0", "acme/llama", "text-generation")
    assert data.to_dict()["base_model_relation"] == "quantized"
    assert {"int8", "vllm"} <= set(data.tags or ())
    assert data.model_name == "llama-8b-int8"
    assert {(result.metric_type, result.metric_value) for result in data.eval_results or ()} == {
        ("known_prompts", 1.0),
        ("replies_end", 1.0),
        ("long_prompt_ratio", 1.0),
        ("tool_accuracy", 1.0),
        ("perplexity_ratio", 1.011),
        ("top1_agreement", 0.9173),
    }


@pytest.mark.parametrize(
    "told",
    [
        "quantized to W8A8 (int8)",
        "64 samples of open_platypus, at most 2048 tokens each, 51,234 tokens in all, digest `" + "c" * 64,
        "| Perplexity over that of the original | 1.011 | ≤ 1.05 |",
        "| Same first choice as the original | 0.9173 | ≥ 0.9 |",
        "| Time to the first token, median, one stream | 44.7 ms | ≤ 500 |",
        "| All streams together | 236.2 tokens/s | ≥ 2 |",
        "| reply | 150 tokens |",
        "a CPU (x86_64)",
        "ARTIFACT=hf:acme/llama-8b-int8@main",
        "vllm serve acme/llama-8b-int8 --max-model-len 5808",
        "97.0% right on held-out utterances",
        "at revision `" + "a" * 40,
    ],
)
def test_the_card_says(metadata: BuildMetadata, told: str) -> None:
    assert told in card(metadata, REPO)


def numbers(node: Any) -> set[str]:
    """Every number in the metadata, as a reader could see it."""
    if isinstance(node, dict):
        return set().union(*map(numbers, node.values())) if node else set()
    if isinstance(node, (list, tuple)):
        return set().union(*map(numbers, node)) if node else set()
    if isinstance(node, (int, float)) and not isinstance(node, bool):
        return {f"{node:g}", f"{node:.4g}", f"{node:,}", f"{node * 100:.1f}", str(node)}
    return set(re.findall(r"\d[\d.,]*", node)) if isinstance(node, str) else set()


@pytest.mark.parametrize("name", ["cpu-int8", "vllm-fp8", "tool-only"])
def test_every_figure_in_the_tables_is_in_the_metadata(name: str) -> None:
    metadata = artifact.read(GOLDEN / name)
    known = numbers(metadata.model_dump(mode="json"))
    for line in card(metadata, REPO).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or set(line) <= set("| -") or cells[0] in {"time", "source", "made"}:
            continue
        for cell in cells[1:]:
            for number in re.findall(r"(?<![\w.-])\d[\d.,]*(?![\w.-])", cell):
                assert number.rstrip(".,") in known, (line, number)


def test_what_was_not_measured_is_not_said(metadata: BuildMetadata) -> None:
    assert metadata.validation
    gates = tuple(gate for gate in metadata.validation.gates if gate.name == "known_prompts")
    bare = metadata.model_copy(update={"validation": metadata.validation.model_copy(update={"gates": gates})})
    text = card(bare, REPO)
    assert "## Speed" not in text
    assert "Perplexity" not in text
    unproven = metadata.model_copy(update={"validation": None})
    assert "Quality" not in card(unproven, REPO)
    assert "passed its gates" not in card(unproven, REPO)


def test_a_folder_has_no_base_model_on_the_hub(metadata: BuildMetadata) -> None:
    assert metadata.chat
    source = metadata.chat.source.model_copy(update={"repo": "my-folder", "revision": None})
    local = metadata.model_copy(update={"chat": metadata.chat.model_copy(update={"source": source})})
    text = card(local, REPO)
    assert ModelCard(text).data.base_model is None
    assert "`my-folder`" in text


def test_the_embedded_model_is_named_by_its_origin() -> None:
    metadata = artifact.read(GOLDEN / "cpu-int8")
    assert ModelCard(card(metadata, REPO)).data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_every_gpu_with_an_engine_is_listed(tmp_path: Path) -> None:
    hopper = artifact.read(engine_artifact(tmp_path / "hopper", H100))
    ampere = artifact.read(engine_artifact(tmp_path / "ampere", A100))
    text = card(ampere, REPO, [hopper])
    assert "- NVIDIA A100-SXM4-80GB (sm80, 80 GiB, driver 580.95.05, CUDA 13.0), engine `trt-llm/engines/sm80_" in text
    assert "- NVIDIA H100 80GB HBM3 (sm90" in text
    assert "--gpus all" in text
    assert "vllm serve" not in text


@pytest.mark.parametrize(
    ("chat", "written"),
    [
        (chat_model("mit", "awq"), True),
        (chat_model("mit", "int4_awq"), True),
        (chat_model("mit", "int8"), False),
        (chat_model("mit", "awq", prequantized=True), False),
    ],
)
def test_awq_made_here_is_described_for_other_tools(chat: ChatModel, written: bool) -> None:
    document = describe_awq(chat, "vllm")
    assert (document is not None) == written
    if document:
        assert document["quantization_config"] == {
            "w_bit": 4,
            "q_group_size": 128,
            "zero_point": True,
            "modules_to_not_convert": ["lm_head"],
        }
        assert document["calibration"]["tokens"] == 51_234
