"""A command's options: one object that typer fills, and the request that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.arguments import options
from pipeline.arguments.option_objects import OptionTable, TableOption, with_options
from pipeline.lanes.gate_specs import OPTIONS, GateSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    depth: Annotated[int, typer.Option(help="How deep.")] = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    place: Annotated[Path, typer.Argument()]
    inner: Inner
    loud: Annotated[bool, typer.Option("--loud")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Twice:
    first: Inner
    depth: Annotated[int, typer.Option()] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tabled:
    sizes: Annotated[
        Mapping[str, int],
        OptionTable(
            {
                "width": TableOption("wide", Annotated[int | None, typer.Option("--wide")]),
                "height": TableOption("high", Annotated[int | None, typer.Option("--high")]),
            }
        ),
    ]


def taken(kind: type, *words: str) -> object:
    seen: list[object] = []
    app = typer.Typer(add_completion=False)
    app.command()(with_options(kind)(seen.append))
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen[0]


def test_fields_are_options_and_groups_are_flat() -> None:
    assert taken(Outer, "here") == Outer(place=Path("here"), inner=Inner(depth=3), loud=False)
    assert taken(Outer, "here", "--depth", "7", "--loud") == Outer(place=Path("here"), inner=Inner(depth=7), loud=True)


def test_what_has_no_default_is_required() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(with_options(Outer)(lambda outer: None))
    assert CliRunner().invoke(app, []).exit_code == 2


def test_two_options_of_one_name_are_told_when_the_command_is_made() -> None:
    with pytest.raises(TypeError, match="Twice holds two options of one name"):
        with_options(Twice)(lambda twice: None)


def test_a_table_fills_a_mapping_with_what_was_given() -> None:
    assert taken(Tabled) == Tabled(sizes={})
    assert taken(Tabled, "--wide", "0") == Tabled(sizes={"width": 0})


# Users have these in scripts: the table may gain options, and not lose one.
OPTION_NAMES = {
    "--max-perplexity-ratio", "--min-top1", "--min-known-prompts", "--max-ttft-ms", "--max-itl-ms",
    "--min-tokens-per-s", "--min-tool-accuracy",
}  # fmt: skip


def test_no_option_of_a_gate_is_lost() -> None:
    assert {option.name for option in OPTIONS.values()} >= OPTION_NAMES


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.sampled_from(["--trt", "--vllm", "--cpu"])),
    st.lists(st.sampled_from(["gptq", "fp8"]), max_size=2),
    st.dictionaries(st.sampled_from(list(OPTIONS)), st.sampled_from([0.0, 0.5, 1.0])),
    st.booleans(),
)
def test_every_option_of_run_reaches_the_request(
    lanes: set[str], fallback: list[str], bounds: dict[GateSpec, float], emulated: bool
) -> None:
    bounds = {spec: max(value, OPTIONS[spec].least) for spec, value in bounds.items()}
    words = ["awq", "org/chat", "org/tool", "--out", "there", *sorted(lanes)]
    words += [word for method in fallback for word in ("--fallback", method)]
    words += [word for spec, value in bounds.items() for word in (OPTIONS[spec].name, str(value))]
    words += ["--allow-emulated"] if emulated else []
    run = taken(options.RunOptions, *words)
    assert isinstance(run, options.RunOptions)
    request = run.request()
    assert (request.method, request.chat, request.tool) == ("awq", "org/chat", "org/tool")
    assert {f"--{name}" for name in request.lanes} == lanes
    assert (request.fallback, request.out, request.allow_emulated) == (tuple(fallback), Path("there"), emulated)
    assert request.thresholds == bounds  # a bound of 0 is one


@pytest.mark.parametrize("word", ["7bit", "4-bit", "8bits", "4bti", "FP8", "int5", "fp9", "nonee", "gptqq"])
def test_a_misspelt_method_before_a_model_is_told_as_a_method(word: str) -> None:
    for models in ([word, "embedded"], [word, "org/model"], [word, "org/model", "embedded"]):
        request = options.LaneOptions(models=models, lanes=[]).request()
        assert (request.method, request.chat) == (word, models[1])


def test_a_folder_or_a_hub_id_that_is_named_like_a_method_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7bit").mkdir()
    for name in ("7bit", "./7bits", "8bit/x", "mistral", "embedded"):
        request = options.LaneOptions(models=[name, "embedded"], lanes=[]).request()
        assert (request.method, request.chat, request.tool) == (None, name, "embedded")
