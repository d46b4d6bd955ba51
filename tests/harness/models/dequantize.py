"""ModelOpt's Hugging Face folders through transformers: what TensorRT-LLM's kernels compute, without them.

Nothing on a CPU serves these folders, so weights are multiplied out and inputs are rounded as the folder's scales say.
That reads the exported files alone, so that it proves them rather than the quantizer's memory.

    weight           int4: two rows in a byte, the even one low; fp8 and int8: as they are
    weight_scale     of a group, a matrix or a row
    input_scale      fp8, int8: of a whole input
    pre_quant_scale  of each input column, where it could not be folded into the layer before
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.engines import Delta, Sampling, TokenScore
from runtime.engines.trt.tokens import SpecialTokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PARTS = ("weight_scale", "input_scale", "pre_quant_scale")
FP8_MOST = 448.0


class TransformersEngine:
    """A minimal engine on transformers, for validation: it scores texts and generates greedily.

    Args:
        load: makes the model.
        tokenizer: folder with the tokenizer and the generation config.
    """

    def __init__(self, load: Callable[[], torch.nn.Module], tokenizer: Path) -> None:
        self._load, self._folder = load, tokenizer

    async def start(self) -> None:
        """Load the model and its tokenizer."""
        from transformers import AutoTokenizer

        self._model = self._load()
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        self._special = SpecialTokens.read(self._folder)

    async def shutdown(self) -> None:
        """Drop the model."""
        self._model = None

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        """Generate greedily: the most probable token each time."""
        import torch

        assert sampling.temperature == 0
        ends = () if sampling.ignore_eos else (self._special.end_id, *self._special.stop_ids)
        given, cache = torch.tensor([list(prompt)]), None
        with torch.inference_mode():
            for left in reversed(range(sampling.max_tokens)):
                step = self._model(given, past_key_values=cache, use_cache=True)
                cache, given = step.past_key_values, step.logits[:, -1:].argmax(-1)
                token = given.item()
                reason = "stop" if token in ends else "length" if left == 0 else None
                on_delta(Delta("" if token in ends else self._tokenizer.decode(token), 1, reason))
                if reason:
                    return

    async def score(self, tokens: Sequence[int]) -> list[TokenScore]:
        """Score each token after the first."""
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor([list(tokens)])).logits[0, :-1].float()
            logprobs = logits.log_softmax(-1)
        following = torch.tensor(list(tokens[1:]))[:, None]
        chosen = logprobs.gather(1, following)[:, 0].tolist()
        return [TokenScore(logprob, top) for logprob, top in zip(chosen, logits.argmax(-1).tolist(), strict=True)]


def engine_of_float(folder: Path) -> TransformersEngine:
    """Make an engine for a float model."""
    return TransformersEngine(lambda: load_float(folder), folder)


def engine_of(folder: Path) -> TransformersEngine:
    """Make an engine for a folder that ModelOpt quantized, which says itself how."""
    algorithm = json.loads((folder / "hf_quant_config.json").read_bytes())["quantization"]["quant_algo"]
    return TransformersEngine(lambda: load(folder, algorithm), folder)


def load_float(folder: Path) -> torch.nn.Module:
    """Load a float model in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def load(folder: Path, algorithm: str) -> torch.nn.Module:
    """Load a quantized model, with its weights dequantized and its inputs rounded on their way."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    # transformers would look for ModelOpt's own loader.
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    state = load_file(folder / "model.safetensors")
    layers = {name.removesuffix(".weight_scale") for name in state if name.endswith(".weight_scale")}
    plain = {name: value for name, value in state.items() if name.rpartition(".")[0] not in layers}
    for name in layers:
        parts = {part: state.get(f"{name}.{part}") for part in PARTS}
        plain[f"{name}.weight"] = weight(state[f"{name}.weight"], parts["weight_scale"], algorithm).to(torch.bfloat16)
        model.get_submodule(name).register_forward_pre_hook(_rounding(parts, algorithm))
    missing, unexpected = model.load_state_dict(plain, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing  # tied to the embedding
    return model


def weight(stored: Tensor, scale: Any, algorithm: str) -> Tensor:
    """Dequantize one stored weight."""
    import torch

    if algorithm == "W4A16_AWQ":
        rows, columns = 2 * stored.shape[0], stored.shape[1]
        nibbles = torch.stack((stored & 0x0F, stored >> 4), dim=1).reshape(rows, columns).to(torch.int8)
        signed = torch.where(nibbles > 7, nibbles - 16, nibbles).float()
        return signed * scale.float().repeat_interleave(columns // scale.shape[1], dim=1)
    scale = scale.float()
    return stored.float() * (scale[:, None] if scale.ndim == 1 and scale.numel() > 1 else scale)


def _rounding(parts: dict[str, Any], algorithm: str) -> Any:
    import torch

    before, scale = parts["pre_quant_scale"], parts["input_scale"]

    def hook(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        if before is not None:
            x = x * before.to(x.dtype)
        if scale is not None:
            scaled = x.float() / scale
            if algorithm == "FP8":
                rounded = scaled.clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn).float()
            else:
                rounded = scaled.round().clamp(-128, 127)
            x = (rounded * scale).to(x.dtype)
        return (x, *inputs[1:])

    return hook
