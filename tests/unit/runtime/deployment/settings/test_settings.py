"""RuntimeSettings: every problem at once, secrets from files, and a table that is never out of date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime import defaults
from runtime.cli import app
from runtime.deployment.settings import RuntimeSettings, SettingsError, load, table
from runtime.deployment.settings.table import markdown, show
from runtime.engines import Sampling
from runtime.server.auth import origin_allowed
from runtime.wire.decoder import Decoder
from runtime.wire.messages import DEFAULT_BOUNDS, Cancel, End

ENVIRONMENT_PAGE = Path(__file__).resolve().parents[5] / "docs" / "environment.md"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RuntimeSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("ARTIFACT", "somewhere")
    monkeypatch.setenv("TEXT_API_KEY", "k")


def problems() -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load()
    return caught.value.problems


def test_the_defaults_are_the_contracts() -> None:
    settings = load()
    assert settings.ws_handshake_acquire_timeout_s == 0.5
    assert settings.ws_idle_timeout_s == 150
    assert settings.ws_max_message_bytes == 262144
    assert settings.session_idle_ttl_seconds == 1800
    assert settings.gen_timeout_s == 60
    assert settings.drain_timeout_s == 25
    assert settings.bounds() == DEFAULT_BOUNDS
    assert settings.sampling(150) == Sampling()


def test_every_problem_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PORT": "ninety", "MAX_CONCURRENT_CONNECTIONS": "0", "DEPLOY_MODE": "chatty"}.items():
        monkeypatch.setenv(name, value)
    found = problems()
    assert [problem.partition(":")[0] for problem in found] == ["DEPLOY_MODE", "PORT", "MAX_CONCURRENT_CONNECTIONS"]
    assert "'ninety'" in found[1]
    assert all("\n" not in problem for problem in found)


def test_what_contradicts_itself_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARTIFACT")
    monkeypatch.delenv("TEXT_API_KEY")
    monkeypatch.setenv("CHAT_TOP_K_MIN", "40")
    monkeypatch.setenv("CHAT_MIN_P_MIN", "0.5")
    monkeypatch.setenv("WS_END_SENTINEL", "__CANCEL__")
    assert [problem.partition(":")[0] for problem in problems()] == [
        "ARTIFACT",
        "TEXT_API_KEY",
        "CHAT_TOP_K",
        "CHAT_MIN_P_MIN",
        "WS_END_SENTINEL",
    ]


@pytest.mark.parametrize("value", ["", " , "])
def test_a_key_that_is_empty_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TEXT_API_KEY", value)
    assert problems() == [
        "TEXT_API_KEY: expected at least one API key, found none; set it or TEXT_API_KEY_FILE",
    ]


def test_keys_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\ntwo, three\n\n")
    monkeypatch.delenv("TEXT_API_KEY")
    monkeypatch.setenv("TEXT_API_KEY_FILE", str(path))
    assert [key.get_secret_value() for key in load().api_keys()] == ["one", "two", "three"]
    monkeypatch.setenv("TEXT_API_KEY", "k")
    assert "found both" in problems()[0]
    monkeypatch.delenv("TEXT_API_KEY")
    path.unlink()
    assert "No such file" in problems()[0]


def test_keys_do_not_show_in_the_settings_nor_in_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT_API_KEY", "hunter2")
    assert "hunter2" not in repr(load())
    monkeypatch.setenv("PORT", "x")
    assert "hunter2" not in str(problems())


def test_an_empty_variable_counts_as_unset_and_words_come_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "")
    monkeypatch.setenv("DEPLOY_MODE", "Both")
    monkeypatch.setenv("WS_ALLOWED_ORIGINS", "https://a.example, https://b.example,")
    settings = load()
    assert settings.port == 8000
    assert settings.deploy_mode == "both"
    assert settings.ws_allowed_origins == ("https://a.example", "https://b.example")


def test_every_variable_is_explained() -> None:
    for name, info in RuntimeSettings.model_fields.items():
        assert info.description, name
        assert isinstance(info.json_schema_extra, dict), name


def test_the_page_holds_the_table() -> None:
    assert markdown() in ENVIRONMENT_PAGE.read_text("utf-8"), "run `python -m pipeline.generated_docs`"


def test_show_prints_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    show()
    text = capsys.readouterr().out
    assert "TENSOR_PARALLEL_SIZE" in text


def test_settings_can_be_checked_without_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(app, ["settings", "--check"]).exit_code == 0
    monkeypatch.setenv("PORT", "many")
    monkeypatch.delenv("TEXT_API_KEY")
    checked = CliRunner().invoke(app, ["settings", "--check"])
    assert checked.exit_code == 64
    assert [line.split(": ")[1] for line in checked.stderr.splitlines()] == ["PORT", "TEXT_API_KEY"]


@pytest.mark.parametrize("value", ["*", "https://a.example, *", " * "])
def test_a_star_among_the_origins_is_everybody(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WS_ALLOWED_ORIGINS", value)
    assert origin_allowed("https://evil.example", load().ws_allowed_origins)


@pytest.mark.parametrize(
    "value", ["https://app.example", "HTTPS://App.Example", "https://App.example:443", " https://app.example/ "]
)
@pytest.mark.parametrize("origin", ["https://app.example", "https://APP.example", "https://app.example:443"])
def test_an_origin_is_the_same_however_it_is_written(monkeypatch: pytest.MonkeyPatch, value: str, origin: str) -> None:
    monkeypatch.setenv("WS_ALLOWED_ORIGINS", value)
    allowed = load().ws_allowed_origins
    assert origin_allowed(origin, allowed)
    for other in ("http://app.example", "https://app.example:8443", "https://app.example.evil", "null"):
        assert not origin_allowed(other, allowed)


@pytest.mark.parametrize("name", ["WS_CANCEL_SENTINEL", "WS_END_SENTINEL"])
def test_spaces_around_a_sentinel_do_not_count(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "  __STOP__\n")
    settings = load()
    message = Decoder(settings.grammar()).decode(" __STOP__ ")
    assert isinstance(message, Cancel if "CANCEL" in name else End)
    monkeypatch.setenv(name, "   ")
    assert problems() == [f"{name}: expected at least 1 characters, found ''"]


@pytest.mark.parametrize("host", ["a..b", ".", "x" * 64, "a." + "y" * 70 + ".b", "é" * 64])
def test_a_host_that_is_no_name_is_refused(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HOST", host)
    (problem,) = problems()
    assert problem.startswith("HOST: expected a host name or an address, found ")


@pytest.mark.parametrize("host", ["0.0.0.0", " 127.0.0.1 ", "::1", "LocalHost", "a.b", "bücher.example"])  # noqa: S104
def test_a_host_that_is_one_is_taken(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HOST", host)
    assert load().host == host.strip()


def test_settings_as_json_hold_every_variable_and_no_secret() -> None:
    settings = RuntimeSettings(artifact="a", text_api_key="s3cret-key", port=9000)
    found = json.loads(table.as_json(settings))
    assert set(found) == {name.upper() for name in RuntimeSettings.model_fields}
    assert found["PORT"]["value"] == 9000
    assert found["PORT"]["default"] == defaults.PORT
    assert found["TEXT_API_KEY"]["value"] is True
    assert "s3cret" not in json.dumps(found)


def test_settings_as_json_are_whole_where_some_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ARTIFACT", "TEXT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PORT", "many")
    ran = CliRunner().invoke(app, ["settings", "--json"])
    found = json.loads(ran.stdout)
    assert set(found) == {name.upper() for name in RuntimeSettings.model_fields}
    assert (found["PORT"]["value"], found["HOST"]["value"]) == (None, "0.0.0.0")  # noqa: S104
    assert ran.exit_code == 64
    assert [line.split(": ")[1] for line in ran.stderr.splitlines()] == ["PORT", "ARTIFACT", "TEXT_API_KEY"]
