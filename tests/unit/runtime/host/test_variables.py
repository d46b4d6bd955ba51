"""What a variable takes, in words: for every variable of both programs, and never with a secret's value."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, Secret, SecretBytes, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from pipeline.settings import PipelineSettings
from pipeline.settings import load as load_pipeline
from runtime.deployment.settings import RuntimeSettings, SettingsError
from runtime.deployment.settings import load as load_runtime
from runtime.host import variables

# Values of which each is wrong for some variable.
WRONG = ("no such word", "-1", "0", "1.5", "99999999999999999999", "1e400", "nan", "x" * 5000, "9" * 5000)


class Vault(BaseModel):
    """Fields whose names do not say what they hold, and one whose name does."""

    plain: int = 0
    key_count: int = 0
    word: SecretStr = SecretStr("")
    perhaps: SecretBytes | None = None
    several: tuple[SecretStr, ...] = ()
    number: Secret[int] = Secret(0)


def field(name: str) -> FieldInfo:
    return Vault.model_fields[name]


def test_a_secret_is_one_by_its_type_not_by_its_name() -> None:
    secret = {name for name, info in Vault.model_fields.items() if variables.holds_secret(info)}
    assert secret == {"word", "perhaps", "several", "number"}
    assert variables.found("17", field("key_count")) == "'17'"
    assert variables.found("17", field("number")) == variables.NOT_SHOWN


def test_the_keys_are_the_only_secret_of_the_servers_variables() -> None:
    secret = {name for name, info in RuntimeSettings.model_fields.items() if variables.holds_secret(info)}
    assert secret == {"text_api_key"}


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("name", list(PipelineSettings.model_fields))
def test_every_variable_of_the_pipeline_says_what_it_takes(name: str, value: str) -> None:
    for problem in load_pipeline({name.upper(): value}).problems:
        assert problem.where == name.upper()
        assert problem.found == repr(value)
        assert "nput" not in problem.expected
        assert "{" not in problem.expected


def problems_of_the_server() -> list[str]:
    try:
        load_runtime()
    except SettingsError as error:
        return error.problems
    return []


@pytest.mark.parametrize("value", WRONG)
def test_every_variable_of_the_server_says_what_it_takes(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    for name in RuntimeSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("ARTIFACT", "somewhere")
    monkeypatch.setenv("TEXT_API_KEY", "k")
    wrong = 0
    for name in set(RuntimeSettings.model_fields) - {"artifact", "text_api_key", "text_api_key_file"}:
        with monkeypatch.context() as patch:
            patch.setenv(name.upper(), value)
            told = problems_of_the_server()
        wrong += len(told)
        assert all("expected" in line and "nput should" not in line and "{" not in line for line in told)
    assert wrong


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("PORT", "ninety", "PORT: expected a valid integer, found 'ninety'"),
        ("PORT", "0", "PORT: expected greater than or equal to 1, found '0'"),
        ("PORT", "70000", "PORT: expected less than or equal to 65535, found '70000'"),
        ("DEPLOY_MODE", "chatty", "DEPLOY_MODE: expected chat, tool or both, found 'chatty'"),
        ("GEN_TIMEOUT_S", "0", "GEN_TIMEOUT_S: expected greater than 0, found '0'"),
        ("GEN_TIMEOUT_S", "long", "GEN_TIMEOUT_S: expected a valid number, found 'long'"),
        ("TRT_KV_ENABLE_BLOCK_REUSE", "maybe", "TRT_KV_ENABLE_BLOCK_REUSE: expected a valid boolean, found 'maybe'"),
        ("CHECK_SCREEN_PREFIX", "x" * 2000, "CHECK_SCREEN_PREFIX: expected at most "),
    ],
)
def test_a_wrong_variable_is_told_in_the_form_of_every_problem(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv("ARTIFACT", "somewhere")
    monkeypatch.setenv("TEXT_API_KEY", "k")
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_runtime()
    assert caught.value.problems[0].startswith(told)


def test_a_file_of_keys_is_no_secret_and_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARTIFACT", "somewhere")
    monkeypatch.delenv("TEXT_API_KEY", raising=False)
    monkeypatch.setenv("TEXT_API_KEY_FILE", str(tmp_path / "missing"))
    with pytest.raises(SettingsError, match="missing"):
        load_runtime()


@pytest.mark.parametrize("name", ["word", "perhaps", "several", "number"])
def test_a_refused_secret_is_not_shown(name: str) -> None:
    wrong: object = [object(), "hunter2"] if name == "several" else {"hunter2": 1}
    with pytest.raises(ValidationError) as caught:
        Vault.model_validate({name: wrong})
    for error in caught.value.errors():
        assert "hunter2" not in variables.found(error["input"], field(name))
