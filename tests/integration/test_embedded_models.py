"""The embedded models, made from their packages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipeline.embedded.chat import export_chat
from pipeline.embedded.packages import TOOL_PACKAGE, package_path
from pipeline.embedded.tool import (
    LABELS,
    TRAINED_WINDOW,
    ToolEvaluation,
    fit,
    load_tokenizer,
    probabilities,
)
from pipeline.embedded.utterances import Utterance, training_utterances
from pipeline.progress import PlainProgress
from pipeline.source.model_source import EMBEDDED, read_facts
from pipeline.steps.stage_runner import StageRunner
from runtime.artifact.hashes import hash_folder
from runtime.deployment.classifier import ToolClassifier
from tests.messages.tool import CASES

pytestmark = pytest.mark.engine

Trained = tuple[Path, ToolEvaluation]


@pytest.fixture
def chat(chat_folder: Path) -> Path:
    return chat_folder


@pytest.fixture(scope="session")
def trained(stages: StageRunner) -> Trained:
    model, evaluation = stages.tool_source(read_facts(EMBEDDED, "TOOL_MODEL"))
    return model.folder, ToolEvaluation(**evaluation)


def test_chat_folder_is_bfloat16_and_ends_its_turns(chat: Path) -> None:
    from safetensors import safe_open

    with safe_open(chat / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    config = json.loads((chat / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert json.loads((chat / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
    assert ModelCard.load(chat / "README.md").data.license == "apache-2.0"
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in chat.iterdir())


def test_chat_tokenizer_renders_its_template_and_reads_back_what_it_wrote(chat: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    )
    text = "  Größe ▁ 😀 it's 12,345 —\n\n\tend "
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    # SmolLM2 was trained with every digit as a token of its own.
    assert [tokenizer.decode([i]) for i in tokenizer("2048")["input_ids"]] == ["2", "0", "4", "8"]


def test_exporting_the_chat_model_again_gives_the_same_bytes(chat: Path, tmp_path: Path) -> None:
    again = export_chat(tmp_path / "again", PlainProgress())
    assert hash_folder(again) == hash_folder(chat)
    assert (again / "README.md").read_bytes() == (chat / "README.md").read_bytes()


def test_classifier_is_right_on_held_out_utterances(trained: Trained) -> None:
    out, report = trained
    # 96 % where this was written; another processor adds numbers in another order and learns a little differently.
    assert report.accuracy >= 0.93
    assert min(report.precision, report.recall) >= 0.90
    assert json.loads((out / "training_report.json").read_text())["accuracy"] == report.accuracy
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.eval_results is not None
    assert card.data.eval_results[0].metric_value == pytest.approx(report.accuracy, abs=1e-4)


@pytest.fixture(scope="module")
def decide(trained: Trained) -> Callable[..., bool]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out, report = trained
    model = AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.id2label == LABELS
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 512

    def decide(*turns: str) -> bool:
        return probabilities(model, tokenizer, [Utterance(turns, False, "")])[0] >= report.threshold

    return decide


def test_saved_classifier_replays_the_labelled_cases(decide: Callable[..., bool]) -> None:
    right = [
        decide(*(turn.text for turn in case.turns[: position + 1])) is turn.expect
        for case in CASES
        for position, turn in enumerate(case.turns)
    ]
    assert sum(right) / len(right) >= 0.93


async def test_the_runtime_reads_turns_as_the_training_did(trained: Trained) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out, report = trained
    asked = [case for case in CASES if len(case.turns) > 1][::3]
    utterances = [Utterance(tuple(turn.text for turn in case.turns), False, "") for case in asked]
    model = AutoModelForSequenceClassification.from_pretrained(out)
    expected = probabilities(model, AutoTokenizer.from_pretrained(out), utterances)
    classifier = ToolClassifier(out, threshold=report.threshold, max_tokens=TRAINED_WINDOW)
    await classifier.start()
    try:
        found = [(await classifier.decide(u.turns[:-1], u.turns[-1])).probability for u in utterances]
    finally:
        await classifier.shutdown()
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_newest_turn_decides_even_after_more_turns_than_the_window_holds(decide: Callable[..., bool]) -> None:
    chatter = ["I had a long day at work and my boss kept talking about the budget."] * 60
    assert decide(*chatter, "look at this picture on my screen")
    assert not decide(*["look at this picture on my screen"] * 3, "thanks, now tell me a bedtime story")


def test_training_is_deterministic() -> None:
    base = package_path(TOOL_PACKAGE, "model")
    few = training_utterances()[::16]
    first, second = (fit(base, load_tokenizer(base), few, PlainProgress()).state_dict() for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first)
