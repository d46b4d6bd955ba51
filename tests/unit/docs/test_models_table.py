"""The table of docs/models.md tells of every family by every method, and nothing in it failed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import lanes
from tests.harness.models import matrix
from tests.harness.models.families import FAMILIES, Family

COLUMNS = (*matrix.METHODS, matrix.SERVED)
TEXT = matrix.DOCUMENT.read_text(encoding="utf-8")


def test_every_family_is_told_of_by_every_method() -> None:
    results = matrix.read_table(TEXT)
    assert set(results) == {family.slug for family in FAMILIES}
    for family in FAMILIES:
        assert tuple(results[family.slug]) == COLUMNS
        kinds = {results[family.slug][column].partition(":")[0] for column in matrix.METHODS}
        assert kinds <= {matrix.WORKS, "refused"}, family.name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.slug)
def test_what_a_cpu_does_not_serve_is_told_by_the_plan(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    served = matrix.read_table(TEXT)[family.slug][matrix.SERVED]
    config = {"model_type": family.model_type, **(family.outer or {})}
    told = lanes.CPU.unserved(config, matrix.SERVED_METHOD)
    assert lanes.VLLM.unserved(config, matrix.SERVED_METHOD) is None
    if served.startswith("not loaded"):
        assert told, served
    else:
        assert told is None


def test_the_table_is_as_a_run_writes_it() -> None:
    section = TEXT.partition(matrix.BEGIN)[2].partition(matrix.END)[0].strip()
    assert section == matrix.table(matrix.read_table(TEXT)).strip()


reasons = st.from_regex(r"[A-Za-z0-9.,;' ]{1,40}", fullmatch=True).map(str.strip).filter(bool)
verdicts = st.one_of(st.sampled_from([matrix.WORKS, matrix.ANSWERS]), reasons.map("refused: {}".format))


rows = st.fixed_dictionaries(dict.fromkeys(COLUMNS, verdicts))


@settings(max_examples=20)
@given(st.fixed_dictionaries({family.slug: rows for family in FAMILIES[:3]}))
def test_what_is_written_is_read_again(results: matrix.Results) -> None:
    read = matrix.read_table(f"{matrix.BEGIN}\n{matrix.table(results)}{matrix.END}")
    assert {slug: read[slug] for slug in results} == results
    assert set(read[FAMILIES[3].slug].values()) == {matrix.NOT_TRIED}
