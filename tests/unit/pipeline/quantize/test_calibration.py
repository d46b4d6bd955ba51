"""Calibration text: which forms are read, and that the same choice gives the same tokens."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.embedded.texts import calibration_texts, heldout_texts
from pipeline.plan import CalibrationPlan
from pipeline.quantize.calibration import (
    calibrate,
    digest_of,
    identity_of,
    read_dataset,
    read_file,
    sample_of,
    training_file,
)
from pipeline.stages.stage import StageError
from runtime.artifact import Calibration
from tests.harness.builds.progress import RecordedProgress
from tests.harness.models import tiny

WORDS = ["<unk>", "user", "assistant", ":", *(f"w{number}" for number in range(200))]
PYTHON = Path(sys.executable)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", model_max_length=16)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    return folder


def texts(path: Path, count: int, words: int = 12) -> Path:
    rows = [" ".join(f"w{(row * 7 + word) % 200}" for word in range(words)) for row in range(count)]
    path.write_text("\n\n".join(rows))
    return path


def run(model: Path, out: Path, dataset: Path | str, samples: int = 4, length: int = 100, seed: int = 1) -> Calibration:
    out.mkdir(exist_ok=True)
    plan = CalibrationPlan(str(dataset), samples, length)
    return calibrate(plan, model, out, seed=seed, parquet_python=PYTHON, progress=RecordedProgress())


def tokens(out: Path) -> list[list[int]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def test_samples_are_token_ids_cut_to_length(model: Path, tmp_path: Path) -> None:
    done = run(model, tmp_path / "out", texts(tmp_path / "t.txt", 10), samples=4, length=9)
    found = tokens(tmp_path / "out")
    assert [len(sample) for sample in found] == [9] * 4
    assert (done.samples, done.tokens, done.sequence_length, done.dataset) == (4, 36, 9, "t.txt")
    assert done.digest == digest_of(found)


def test_the_same_seed_chooses_the_same_samples(model: Path, tmp_path: Path) -> None:
    file = texts(tmp_path / "t.txt", 50)
    first, again = run(model, tmp_path / "a", file), run(model, tmp_path / "b", file)
    other = run(model, tmp_path / "c", file, seed=2)
    assert first == again
    assert first.digest != other.digest


def test_fewer_rows_than_samples_are_all_taken_in_order(model: Path, tmp_path: Path) -> None:
    done = run(model, tmp_path / "out", texts(tmp_path / "t.txt", 3), samples=64)
    assert done.samples == 3
    assert [sample[0] for sample in tokens(tmp_path / "out")] == [WORDS.index(f"w{row * 7}") for row in range(3)]


def test_texts_that_are_too_short_are_skipped(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("w1 w2\n\n" + " ".join(["w3"] * 10) + "\n\nw4")
    assert run(model, tmp_path / "out", file).samples == 1


def test_nothing_usable_is_an_error_that_says_what_to_do(model: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("w1\n\nw2")
    with pytest.raises(StageError, match=r"found none in 2 rows \(.*t.txt\); choose another AWQ_CALIB_DATASET"):
        run(model, tmp_path / "out", tmp_path / "t.txt")


def test_conversations_go_through_the_chat_template(model: Path, tmp_path: Path) -> None:
    row = {"instruction": "w1 w2 w3", "input": "w4", "output": "w5 w6"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n\n")
    run(model, tmp_path / "out", tmp_path / "t.jsonl")
    (sample,) = tokens(tmp_path / "out")
    assert [WORDS[token] for token in sample] == ["user", ":", "w1", "w2", "w3", "w4", "assistant", ":", "w5", "w6"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("plain", "plain"),
        ({"text": "plain"}, "plain"),
        ({"messages": [{"role": "user", "content": "a"}]}, [{"role": "user", "content": "a"}]),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        ),
        (
            {"prompt": "a", "completion": "b", "id": 7},
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        ),
    ],
)
def test_rows_of_the_known_forms(row: Any, expected: Any) -> None:
    assert sample_of(row, "row") == expected


@pytest.mark.parametrize(
    "row", [{}, {"title": "x"}, 7, None, {"messages": ["text"]}, {"messages": [{"role": "robot", "content": "x"}]}]
)
def test_other_rows_are_refused_with_their_place(row: Any) -> None:
    with pytest.raises(StageError, match="row 3"):
        sample_of(row, "row 3")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(StageError, match=r"t\.jsonl:2"):
        read_file(tmp_path / "t.jsonl")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StageError, match="expected UTF-8 text"):
        read_file(tmp_path / "t.txt")


def test_the_embedded_set_is_there_and_has_an_identity() -> None:
    name, rows = read_dataset("embedded", PYTHON)
    assert name == "embedded"
    assert len(rows) >= 16
    assert len(identity_of("embedded")) == 64


def test_a_files_identity_is_its_content(tmp_path: Path) -> None:
    file = texts(tmp_path / "t.txt", 3)
    before = identity_of(str(file))
    file.write_text("another")
    assert identity_of(str(file)) != before
    assert identity_of("open_platypus") == "garage-bAInd/Open-Platypus"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["README.md", "data/test.parquet", "data/train-0.parquet"], "data/train-0.parquet"),
        (["train.jsonl", "train.parquet"], "train.jsonl"),
        (["dataset_infos.json", "a.json"], "a.json"),
        (["README.md"], None),
    ],
)
def test_the_training_file_is_found(names: list[str], expected: str | None) -> None:
    assert training_file(names) == expected


def test_a_hub_that_is_out_of_reach_says_what_to_do_instead(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StageError, match=r"set AWQ_CALIB_DATASET=embedded or name a \.txt or \.jsonl file"):
        run(model, tmp_path / "out", "open_platypus")


@pytest.mark.parametrize(
    "odd",
    [
        {"messages": [{"role": "tool", "content": "w1 w2"}]},
        {"title": "no text"},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "system", "content": "w1 w2 w3 w4 w5 w6 w7 w8 w9"}]},
        7,
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_an_odd_row_is_left_out_and_counted(model: Path, tmp_path: Path, odd: Any, suffix: str) -> None:
    told: list[str] = []

    class Told(RecordedProgress):
        def step(self, message: str) -> None:
            told.append(message)

    rows = [{"text": " ".join(["w3"] * 10)}, odd, {"text": " ".join(["w4"] * 10)}]
    file = tmp_path / f"t{suffix}"
    file.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    done = calibrate(
        CalibrationPlan(str(file), 4, 100), model, tmp_path, seed=1, parquet_python=PYTHON, progress=Told()
    )
    assert done.samples == 2
    assert any("1 rows of the calibration set were left out" in line for line in told)


STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) or not m['content'] %}{{ raise_exception('no') }}{% endif %}"
    "{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
)


@pytest.mark.parametrize(
    "turns",
    [
        [("system", "w1"), ("user", "w2"), ("assistant", "w3")],
        [("gpt", "w1"), ("human", "w2"), ("gpt", "w3")],
        [("user", "w1"), ("user", "w2"), ("assistant", "w3"), ("assistant", "w4")],
        [("user", "w1"), ("system", "w2"), ("assistant", "w3")],
        [("assistant", "w1")],
    ],
)
def test_conversations_are_mended_as_the_runtime_mends_them(
    model: Path, tmp_path: Path, turns: list[tuple[str, str]]
) -> None:
    folder = shutil.copytree(model, tmp_path / "strict")
    (folder / "chat_template.jinja").write_text(STRICT)
    row = {"conversations": [{"from": role, "value": f"{said} w9 w9 w9 w9"} for role, said in turns]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    assert run(folder, tmp_path / "out", tmp_path / "t.jsonl").samples == 1
    said = {WORDS[token] for token in tokens(tmp_path / "out")[0]}
    assert {word for _, word in turns} <= said


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_only_a_line_feed_ends_a_row(tmp_path: Path, char: str) -> None:
    row = {"text": f"one{char}two"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_file(tmp_path / "t.jsonl") == [row["text"]]


STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if not m['content'] %}{{ raise_exception('empty') }}{% endif %}{{ m.role }} : {{ m.content }} {% endfor %}"
)
GOOD = {"messages": [{"role": "user", "content": "w1 w2 w3"}, {"role": "assistant", "content": "w4 w5 w6 w7"}]}
ODD_ROWS = {
    "a system message": {"messages": [{"role": "system", "content": "w8"}, *GOOD["messages"]]},
    "an opening by the assistant": {"conversations": [{"from": "gpt", "value": "w1 w2 w3"}, *GOOD["messages"]]},
    "two turns of the user": {"messages": [GOOD["messages"][0], *GOOD["messages"]]},
    "nothing said": {"messages": [{"role": "user", "content": ""}, *GOOD["messages"]]},
    "no conversation": {"messages": [{"role": "narrator", "content": "w1"}]},
    "no row": {"number": 3},
    "a line separator": {"text": "w1 w2 w3 w4\u2028w5 w6 w7 w8 w9"},
    "a row longer than the context": {"text": " ".join(["w1"] * 90)},
    "a token that was added later": {"text": "w1 w2 w3 w4 w5 w6 w7 w199"},
}


@pytest.mark.parametrize("odd", ODD_ROWS, ids=str)
def test_one_odd_row_never_ends_a_run(odd: str, model: Path, tmp_path: Path) -> None:
    strict = Path(shutil.copytree(model, tmp_path / "model"))
    (strict / "chat_template.jinja").write_text(STRICT)
    config = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    config |= {"vocab_size": len(WORDS) - 1, "max_position_embeddings": 40}
    (strict / "config.json").write_text(json.dumps(config))
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in [GOOD, ODD_ROWS[odd], GOOD]))
    made = run(strict, tmp_path / "out", dataset)
    assert made.samples + made.left_out == 3
    assert made.left_out == (odd in {"nothing said", "no conversation", "no row", "a token that was added later"})
    assert made.sequence_length == 40
    written = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert max(map(len, written)) <= 40
    assert max(max(tokens) for tokens in written) < len(WORDS) - 1


def test_how_much_of_the_held_out_text_calibration_saw_is_told(tmp_path: Path) -> None:
    folder = tiny.tokenizer(tmp_path / "model")
    file = tmp_path / "mine.jsonl"

    def share(*rows: str) -> float:
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
        done = run(folder, tmp_path / "out", file, samples=500, length=4096)
        assert done.held_out_share is not None
        return done.held_out_share

    held_out = heldout_texts()
    assert share(*held_out) == 1
    # In other surroundings, and in part.
    assert 0 < share(f"Read this: {held_out[0]} Thank you for reading it to the end.") < 0.5
    assert share(*calibration_texts()) == 0
    embedded = run(folder, tmp_path / "out", "embedded", samples=500, length=4096)
    assert embedded.held_out_share == 0
