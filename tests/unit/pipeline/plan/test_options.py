"""A command's options: one object that typer fills, and the request that it makes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.lanes.gates import Thresholds
from pipeline.plan import options
from pipeline.plan.option_objects import filled


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


def taken(kind: type, *words: str) -> object:
    seen: list[object] = []
    app = typer.Typer(add_completion=False)
    app.command()(filled(kind)(seen.append))
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen[0]


def test_fields_are_options_and_groups_are_flat() -> None:
    assert taken(Outer, "here") == Outer(place=Path("here"), inner=Inner(depth=3), loud=False)
    assert taken(Outer, "here", "--depth", "7", "--loud") == Outer(place=Path("here"), inner=Inner(depth=7), loud=True)


def test_what_has_no_default_is_required() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(filled(Outer)(lambda outer: None))
    assert CliRunner().invoke(app, []).exit_code == 2


def test_two_options_of_one_name_are_told_when_the_command_is_made() -> None:
    with pytest.raises(TypeError, match="Twice holds two options of one name"):
        filled(Twice)(lambda twice: None)


def test_a_gate_has_an_option_and_an_option_a_gate() -> None:
    assert {entry.name for entry in fields(options.GateOptions)} == {entry.name for entry in fields(Thresholds)}


GATES = {
    "perplexity_ratio": "--max-perplexity-ratio",
    "top1_agreement": "--min-top1",
    "known_prompts": "--min-known-prompts",
    "ttft_ms": "--max-ttft-ms",
    "itl_ms": "--max-itl-ms",
    "tokens_per_s": "--min-tokens-per-s",
    "tool_accuracy": "--min-tool-accuracy",
}


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.sampled_from(["--trt", "--vllm", "--cpu"])),
    st.lists(st.sampled_from(["gptq", "fp8"]), max_size=2),
    st.dictionaries(st.sampled_from(sorted(GATES)), st.sampled_from([0.0, 0.5, 1.0])),
    st.booleans(),
)
def test_every_option_of_run_reaches_the_request(
    lanes: set[str], fallback: list[str], bounds: dict[str, float], emulated: bool
) -> None:
    bounds = {name: max(value, 1.0) if name == "perplexity_ratio" else value for name, value in bounds.items()}
    words = ["awq", "org/chat", "org/tool", "--out", "there", *sorted(lanes)]
    words += [word for method in fallback for word in ("--fallback", method)]
    words += [word for name, value in bounds.items() for word in (GATES[name], str(value))]
    words += ["--allow-emulated"] if emulated else []
    run = taken(options.RunOptions, *words)
    assert isinstance(run, options.RunOptions)
    request = run.request()
    assert (request.method, request.chat, request.tool) == ("awq", "org/chat", "org/tool")
    assert {f"--{name}" for name in request.lanes} == lanes
    assert (request.fallback, request.out, request.allow_emulated) == (tuple(fallback), Path("there"), emulated)
    assert request.thresholds == bounds  # a bound of 0 is one
