"""An adapter without its framework: what is said to who imports it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from yap_client.frameworks import missing as reasons
from yap_client.frameworks.missing import missing

ROOT = Path(__file__).parents[4]
CLIENT = ROOT / "client"
PROJECT = (CLIENT / "pyproject.toml").read_text("utf-8")
EXTRAS = dict(re.findall(r'^(pipecat|livekit) = \["(.*)"\]$', PROJECT, re.MULTILINE))


@pytest.mark.parametrize("adapter", ["pipecat", "livekit"])
def test_who_imports_an_adapter_is_told_what_to_install(adapter: str) -> None:
    if find_spec(adapter) is not None:
        pytest.skip("the framework is here")
    source = f"import yap_client.{adapter}"
    done = subprocess.run([sys.executable, "-c", source], cwd=CLIENT, capture_output=True, text=True, check=False)
    *_, last = done.stderr.splitlines()
    package = EXTRAS[adapter].replace(">=", " ")
    assert last.startswith(f"ModuleNotFoundError: yap_client.{adapter} needs {package} or later, on Python 3.1")
    # The oldest Python that has one may be newer than this one; then there is nothing to install.
    assert f"pip install 'yap-client[{adapter}]'" in last or "this is Python 3.10" in last


def test_who_has_too_old_a_python_is_told_so() -> None:
    wrong = ModuleNotFoundError("No module named 'loguru'", name="loguru")
    error = missing("pipecat", "pipecat", "pipecat-ai 1.14", (99, 1), wrong)
    here = ".".join(map(str, sys.version_info[:3]))
    expected = "yap_client.pipecat needs pipecat-ai 1.14 or later, on Python 99.1 or later: this is Python"
    assert (type(error), str(error)) == (ModuleNotFoundError, f"{expected} {here}")


def test_who_has_another_version_is_told_what_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasons, "find_spec", lambda module: object())
    error = missing("pipecat", "pipecat", "pipecat-ai 1.14", (3, 10), ImportError("cannot import name 'LLMContext'"))
    assert type(error) is ImportError
    assert "cannot import name 'LLMContext'" in str(error)
    assert "--upgrade" in str(error)


def test_no_extra_is_nothing_on_some_pythons() -> None:
    """An installer that leaves a package out says nothing; the lock alone, which is for all of them, does."""
    assert EXTRAS.keys() == {"pipecat", "livekit"}
    assert not [extra for extra in EXTRAS.values() if ";" in extra]
    locked = (ROOT / "images/locks/frameworks.in").read_text("utf-8")
    assert f"\n{EXTRAS['pipecat']} ; python_version >= '3.11'\n" in locked
