"""Checks a config with the class that will read it: transformers', by its model type.

Our own reader is tolerant, so that one line can tell everything that is wrong. What loads the model is not: a width
written as a text plans well and fails hours later. Code that comes with a model is never run.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pipeline.checkpoint.completeness import lack_of
from pipeline.checkpoint.config_reader import SHOWN, ConfigError, ConfigReader, shown, text_config
from pipeline.checkpoint.prequantized import PREQUANTIZED, recognize
from pipeline.checkpoint.shape import Shape, ShapeError
from pipeline.problem import Problem
from pipeline.source.model_files import CHECKPOINTS, Role
from pipeline.source.source_facts import SourceFacts

# What the weights of a model in float may be.
FLOATS = frozenset({"auto", "bfloat16", "float16", "float32", "float64", "half", "float"})
# Where a config names the code that comes with a model.
CODE_KEY = "auto_map"


def with_known_config(facts: SourceFacts, role: Role) -> SourceFacts:
    """Return the facts, with the problem that what loads the model would have with its config and its weights."""
    # A TensorRT-LLM checkpoint has a config of its own.
    if facts.problems or facts.kind == "embedded" or (facts.checkpoint and facts.config is facts.checkpoint):
        return facts
    problem = config_problem(facts.config, role, facts.ref) or _weights_problem(facts, role)
    return replace(facts, problems=(problem,)) if problem else facts


def config_problem(config: Mapping[str, Any], role: Role, ref: str) -> Problem | None:
    """Return what transformers makes of a config; none where it reads it."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    where = f"the config.json of {ref}"
    model_type: str | None = None
    try:
        model_type = ConfigReader(config).word("model_type")
        # What our reader refuses, it tells better.
        if role == "CHAT_MODEL":
            in_float = recognize(config, "", bytes_per_weight=None) is None
            Shape.of(config)
            _check_numbers(config, in_float=in_float)
    except ShapeError:
        pass  # told by the plan, with what else is wrong
    except ConfigError as error:
        quantized = error.key.partition(".")[0].endswith("quantization_config")
        next_step = PREQUANTIZED if quantized else "choose another model"
        return Problem(role, f"{error.expected} in {error.key} of {where}", error.found, next_step)
    if model_type is None:
        return Problem(
            role, f"a model_type in {where}", "none", "save it with `save_pretrained`, or choose another model"
        )
    if model_type not in CONFIG_MAPPING:
        code = ", with code of its own (auto_map), which is not run" if config.get(CODE_KEY) else ""
        expected = f"a model_type that transformers {transformers.__version__} knows, in {ref}"
        return Problem(role, expected, f"{model_type!r}{code}", "choose another model")
    try:
        with _quiet():
            CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(dict(config)))
    except Exception as error:  # noqa: BLE001 - its classes raise whatever a value makes them
        expected = f"a config.json that transformers {transformers.__version__} reads as {model_type}, in {ref}"
        return Problem(role, expected, _told(error), "correct it, or choose another model")
    return None


def _check_numbers(config: Mapping[str, Any], *, in_float: bool) -> None:
    """Check what transformers' classes take as it comes, and only the model is made of.

    Raises:
        ConfigError: it cannot be right.
    """
    text = text_config(config)
    dtype = (text.word("dtype", "torch_dtype") or "auto").removeprefix("torch.")
    if in_float and dtype not in FLOATS:
        raise ConfigError("dtype", f"one of {', '.join(sorted(FLOATS))}", repr(dtype))
    for key in ("rope_parameters", "rope_scaling"):
        sections: list[object] = [text.values.get(key)]
        for section in sections:
            if not isinstance(section, Mapping):
                continue
            sections += section.values()
            factor = section.get("factor")
            number = isinstance(factor, int | float) and not isinstance(factor, bool)
            if factor is not None and not (number and factor >= 1):
                raise ConfigError(f"{key}.factor", "a number from 1", shown(factor))


def _weights_problem(facts: SourceFacts, role: Role) -> Problem | None:
    """Return what the weights lack that the config speaks of."""
    if any(name.startswith(CHECKPOINTS) for name in facts.weight_files):
        return None  # the names in a TensorRT-LLM checkpoint are its own, and each rank has its share
    try:
        lack = lack_of(facts.config, facts.tensors, classifier=role == "TOOL_MODEL")
    except ConfigError:
        return None  # told by the plan, with what else is wrong
    return Problem(role, f"{lack.expected}, in {facts.ref}", lack.found, lack.next_step) if lack else None


def _told(error: Exception) -> str:
    """Word what a config class raised, on one short line."""
    text = " ".join(str(error).split())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return shown(line)[1:-1] if len(line) < SHOWN else f"{line[: 3 * SHOWN]}…" if len(line) > 3 * SHOWN else line


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from warning of keys that it does not know."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
