"""The labelled utterances and the texts that the package carries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest

from pipeline.embedded.texts import KnownPrompt, calibration_texts, heldout_texts, known_prompts
from pipeline.embedded.utterances import Utterance, heldout_utterances, training_utterances
from tests.messages.tool import CASES


def normal(turns: Iterable[str]) -> str:
    return " / ".join(" ".join(re.findall(r"[a-z0-9']+", turn.lower())) for turn in turns)


def normal_turns(utterances: Sequence[Utterance]) -> set[str]:
    return {normal(u.turns) for u in utterances}


SETS = {"training": training_utterances(), "held-out": heldout_utterances()}


@pytest.mark.parametrize(("name", "least"), [("training", 600), ("held-out", 150)])
def test_utterances_are_many_balanced_and_of_many_kinds(name: str, least: int) -> None:
    utterances = SETS[name]
    assert len(utterances) >= least
    assert 0.44 <= sum(u.screenshot for u in utterances) / len(utterances) <= 0.56
    for label in (True, False):
        assert len({u.kind for u in utterances if u.screenshot is label}) >= 7
    assert sum(len(u.turns) > 1 for u in utterances) >= 20


@pytest.mark.parametrize("name", SETS)
def test_no_utterance_occurs_twice_or_is_empty(name: str) -> None:
    count = Counter(normal(u.turns) for u in SETS[name])
    assert [text for text, times in count.items() if times > 1] == []
    assert all(turn.strip() == turn and turn for u in SETS[name] for turn in u.turns)


def test_held_out_utterances_are_not_in_the_training_set() -> None:
    assert normal_turns(SETS["held-out"]) & normal_turns(SETS["training"]) == set()
    # Nor is the turn that decides, whatever stood before it.
    trained = {normal(u.turns[-1:]) for u in SETS["training"]}
    assert {normal(u.turns[-1:]) for u in SETS["held-out"]} & trained == set()


def test_replayed_cases_are_many_balanced_and_in_no_other_set() -> None:
    turns = [turn for case in CASES for turn in case.turns]
    assert len(CASES) >= 200
    assert len({case.name for case in CASES}) == len(CASES)
    assert 0.4 <= sum(turn.expect for turn in turns) / len(turns) <= 0.6
    assert sum(len(case.turns) > 1 for case in CASES) >= 30
    known = {normal(u.turns[-1:]) for utterances in SETS.values() for u in utterances}
    assert {normal([turn.text]) for turn in turns} & known == set()


def test_context_turns_do_not_decide() -> None:
    """Both labels occur after a turn that asks for the screen, so that the last turn has to be read."""
    asked = {normal(u.turns) for u in SETS["training"] if u.screenshot and len(u.turns) == 1}
    after = {u.screenshot for u in SETS["training"] if any(normal([turn]) in asked for turn in u.turns[:-1])}
    assert after == {True, False}


def test_calibration_and_held_out_conversations_share_nothing() -> None:
    calibration, heldout = calibration_texts(), heldout_texts()
    assert len(calibration) >= 64
    lines = {line for text in calibration for line in text.splitlines()}
    assert lines & {line for text in heldout for line in text.splitlines()} == set()
    assert len(set(calibration + heldout)) == len(calibration) + len(heldout)


def test_conversations_are_transcripts_that_begin_with_the_user() -> None:
    for text in calibration_texts() + heldout_texts():
        assert text.startswith("User: ")
        assert text.count("\nAssistant: ") >= 1
        assert "---" not in text


def test_a_known_prompt_accepts_any_of_its_words_in_any_case() -> None:
    prompt = KnownPrompt("What do bees make?", ("honey", "wax"))
    assert prompt.answered_by("They make Honey.")
    assert not prompt.answered_by("They make noise.")
    assert not any(known.answered_by(known.prompt) for known in known_prompts())
