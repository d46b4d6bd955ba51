"""A variable that was meant for this program and has no effect is told; everybody else's are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.settings import PipelineSettings
from runtime.cli import app
from runtime.deployment.settings import RuntimeSettings
from runtime.deployment.settings.unknown import PIPELINE, REMOVED, warnings

KNOWN = sorted(name.upper() for name in RuntimeSettings.model_fields)


def test_what_is_known_is_not_told() -> None:
    assert warnings(KNOWN) == []
    assert warnings(name.lower() for name in KNOWN) == []


def test_the_pipelines_variables_are_not_told() -> None:
    pipeline = {name.upper() for name in PipelineSettings.model_fields}
    assert warnings(pipeline) == []
    assert pipeline - set(KNOWN) == PIPELINE


@given(st.sampled_from([name for name in KNOWN if len(name) >= 8]), st.data())
def test_a_letter_wrong_is_told_with_what_was_meant(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name) - 1))
    wrong = data.draw(
        st.sampled_from((name[:place] + name[place + 1 :], name[:place] + "X" + name[place:], name.replace("_", "")))
    )
    if wrong in KNOWN or wrong in PIPELINE:
        return
    (told,) = warnings([wrong])
    assert told.startswith(f"{wrong}: unknown, and ignored; did you mean ")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MAX_CONCURENT_CONNECTIONS", "MAX_CONCURRENT_CONNECTIONS"),
        ("TEXT_APIKEY", "TEXT_API_KEY"),
        ("PROT", "PORT"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("WS_ALLOWED_ORIGIN", "WS_ALLOWED_ORIGINS"),
    ],
)
def test_what_was_meant_is_named(name: str, meant: str) -> None:
    assert warnings([name]) == [f"{name}: unknown, and ignored; did you mean {meant}?"]


@pytest.mark.parametrize("name", sorted(REMOVED))
def test_what_was_removed_is_told_with_what_came_for_it(name: str) -> None:
    (told,) = warnings([name])
    assert told.startswith(f"{name}: removed, and ignored; ")


@pytest.mark.parametrize("name", ["WS_COMPRESSION", "CHAT_STREAMING", "TOOL_LANGUAGE", "TEXT_API_VERSION"])
def test_an_unknown_member_of_a_family_is_told(name: str) -> None:
    (told,) = warnings([name])
    assert "unknown, and ignored" in told


OTHERS = (
    "PATH", "HOME", "HOSTNAME", "TERM", "LANG", "PWD", "SHELL", "USER", "LOGNAME", "HF_TOKEN", "HF_HOME", "PYTHONPATH",
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "VLLM_CACHE_ROOT", "VLLM_LOGGING_LEVEL", "TRTLLM_LOG_LEVEL",
    "KUBERNETES_SERVICE_HOST", "KUBERNETES_PORT", "CHAT_SERVICE_HOST", "CHAT_SERVICE_PORT_HTTP", "CHAT_PORT",
    "CHAT_PORT_8000_TCP_ADDR", "TOOL_PORT_80_TCP", "YAP_LANE", "YAP_PROGRAM", "LD_LIBRARY_PATH", "UV_CACHE_DIR",
    "XDG_CACHE_HOME", "OLDPWD", "SHLVL", "_", "",
)  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_everybody_elses_are_not_told(name: str) -> None:
    assert warnings([name]) == []


@given(st.lists(st.text(max_size=100), max_size=20))
def test_any_names_give_a_line_each_at_most(names: list[str]) -> None:
    assert len(warnings(names)) <= len({name.upper() for name in names})


def test_no_value_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT_API_KYE", "hunter2")
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(app, ["settings", "--check"])
    assert "TEXT_API_KYE: unknown, and ignored; did you mean TEXT_API_KEY?" in result.output
    assert "hunter2" not in result.output
