"""A sample of the table in docs/models.md, planned and quantized for real; `make test-models` does it all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.models import matrix
from tests.harness.models.families import BY_SLUG

pytestmark = pytest.mark.engine

# One of each kind of difficulty.
SAMPLE = (
    ("llama", "int8"),
    ("qwen-3-moe", "awq"),  # experts that are loaded through transformers' patches, which want torchvision
    ("gemma-3--vision", "gptq"),  # a tower of another sense, with widths that hold no groups
    ("mistral-3--vision", "int8"),  # no class for causal language models
    ("olmo-2", "awq"),  # no norm before the matrices
    ("glm-4", "int8"),  # no mapping in llm-compressor
    ("gemma-2", "int8"),  # a wrong mapping in llm-compressor
    ("jamba", "gptq"),  # recurrent layers with narrow matrices, and a router that is a linear layer
    ("gpt-oss", "fp8"),  # experts in one tensor, transposed and interleaved
    ("gpt-2", "fp8"),  # no linear layer at all
    ("nemotron-h", "gptq"),  # a config with numbers that JSON has no words for, which counts experts that it lacks
    ("llama", "trt int4_awq"),
    ("qwen-3-moe", "trt fp8"),
)

# Its first kernel uses the CPU's matrix unit, where there is one.
SERVED = "llama"


@pytest.fixture(scope="module")
def table() -> matrix.Results:
    return matrix.read_table(matrix.DOCUMENT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[matrix.Matrix]:
    with matrix.quantizers() as forks:
        yield matrix.Matrix(tmp_path_factory.mktemp("models"), forks)


@pytest.mark.parametrize(("family", "column"), SAMPLE, ids=lambda part: part.replace(" ", "-"))
def test_the_table_tells_the_truth(family: str, column: str, models: matrix.Matrix, table: matrix.Results) -> None:
    assert models.verdict(BY_SLUG[family], column) == table[family][column]


def test_what_is_said_to_answer_does(models: matrix.Matrix, table: matrix.Results) -> None:
    family = BY_SLUG[SERVED]
    assert models.verdict(family, matrix.SERVED_METHOD) == matrix.WORKS
    with matrix.engines() as forks:
        assert models.served(family, forks) == table[SERVED][matrix.SERVED] == matrix.ANSWERS
