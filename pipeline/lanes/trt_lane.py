"""The TensorRT-LLM lane: its methods, and what it is known not to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.lanes.lane import FP8_SM, LAST_INT8_SM, Lane, Refusal
from pipeline.lanes.methods import STATIC_EIGHT_BIT, Bounds

# TensorRT-LLM lists no weight-only INT4 kernels for the desktop Blackwell, and no INT8 from Blackwell on
# (its support matrix, release 1.2).
NO_INT4_SM = frozenset({120, 121})
# Model types for which TensorRT-LLM 1.2 compiles no engine.
NOT_COMPILED = frozenset({"gpt_oss", "qwen3_next", "llama4", "llama4_text", "deepseek_v3", "deepseek_v32", "mistral3"})
PYTORCH_WAY_OUT = "set TRT_BACKEND=pytorch"
# Model types that ModelOpt 0.47 fails on for the PyTorch backend, after calibration or in it (docs/models.md).
EXPERTS_IN_ONE_TENSOR = frozenset({"gpt_oss", "llama4", "llama4_text"})
NOT_CALIBRATED = frozenset({"qwen2_5_vl", "qwen2_5_vl_text"})


class TrtLane(Lane):
    """The TensorRT-LLM lane: compiled engines, or its PyTorch backend on a quantized Hugging Face folder."""

    __slots__ = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The words that may stand for a method on the command line."""
        return ("4bit", "8bit", "awq", *self.methods)

    def resolve(self, word: str, sm: int | None) -> tuple[str, str]:
        """Return the method that a word means here, and why."""
        if word in {"4bit", "awq"}:
            return "int4_awq", f"{word} means AWQ with 4-bit integers, ModelOpt's int4_awq"
        if word != "8bit":
            return word, "asked for"
        if (sm or 0) >= FP8_SM:
            return "fp8", f"8bit on sm{sm} is FP8, which it computes natively"
        return "int8_sq", f"8bit on sm{sm} is INT8 with SmoothQuant: FP8 arithmetic begins with sm{FP8_SM}"

    def refusal(self, method: str, sm: int | None, *, allow_emulated: bool) -> Refusal | None:
        """Return why the hardware cannot run a method; none when it can."""
        if sm is None:
            return None
        if method == "fp8" and sm < FP8_SM:
            other = "int8_sq" if "int8_sq" in self.methods else "int4_awq"
            return Refusal(f"FP8 arithmetic begins with sm{FP8_SM}, this is sm{sm}", f"use {other}")
        if method == "int4_awq" and sm in NO_INT4_SM:
            return Refusal(f"TensorRT-LLM lists no INT4 kernels for sm{sm}", "use fp8")
        if method == "int8_sq" and "int8_sq" not in self.methods:
            reason = "INT8 with SmoothQuant runs only as a compiled engine"
            return Refusal(reason, "set TRT_BACKEND=engine, or use 4bit")
        if method == "int8_sq" and sm > LAST_INT8_SM:
            return Refusal(f"TensorRT-LLM lists no INT8 for sm{sm}", "use fp8")
        return None

    def bounds(self, method: str) -> tuple[Bounds, Bounds]:
        """Return what a method must reach here: for models under a billion parameters, and for the others."""
        return STATIC_EIGHT_BIT if method == "fp8" else Lane.bounds(self, method)

    def experts_refusal(self, method: str) -> Refusal | None:
        """Return why a method is not for mixtures of experts here; none when it is."""
        if self.compiles or method != "int4_awq":
            return None
        # It looks for a matrix an expert, under names of four families, when hours of calibration are over.
        return Refusal("ModelOpt exports no AWQ of mixtures of experts", "use 8bit, or set TRT_BACKEND=engine")

    def known_incompatibility(self, config: Mapping[str, Any], method: str) -> Refusal | None:
        """Return why a model is known not to work with a method here; none when nothing is known."""
        kind = str(config.get("model_type", ""))
        if not self.compiles:
            if kind == "mixtral" and method == "int4_awq":
                reason = "TensorRT-LLM's PyTorch backend lists no AWQ for Mixtral"
                return Refusal(reason, "use 8bit, or set TRT_BACKEND=engine")
            if kind in EXPERTS_IN_ONE_TENSOR and method == "int8_sq":
                return Refusal("ModelOpt exports no INT8 of experts that lie in one tensor", "use fp8")
            if kind in NOT_CALIBRATED:
                return Refusal(f"ModelOpt does not get through {kind}'s rotary embedding", "build it for another lane")
            return None
        if kind in NOT_COMPILED:
            return Refusal(f"TensorRT-LLM 1.2 compiles no engine for {kind}", PYTORCH_WAY_OUT)
        if kind in {"qwen3", "qwen3_moe"} and method == "int4_awq":
            reason = "TensorRT-LLM cannot compile Qwen3 with AWQ (its issue 10739)"
            return Refusal(reason, f"{PYTORCH_WAY_OUT}, or use 8bit")
        return None
