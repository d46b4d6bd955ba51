"""Which weights of a checkpoint stay in float, told from their names and shapes.

A quantizer rounds the linear layers of the language model. The rest stays as it is: what lies outside the decoder's
layers (heads, embeddings, the projections beside them), towers of other senses (vision, audio) with what joins them,
routers of mixtures of experts, whatever a family calls them, and the narrow matrices of recurrent layers that set their
pace: all of these lose most and weigh least.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.shape import expert_count

HEAD, EMBEDDING, TOWER, ROUTER, STEP, MIXER, OUTSIDE = (
    "head",
    "embedding",
    "tower of another sense",
    "router of experts",
    "step of a recurrent layer",
    "recurrent layer that engines compute in float",
    "outside the decoder's layers",
)

# Where a decoder keeps its layers: model.layers.0, transformer.h.0, backbone.layers.0, model.decoder.layers.0.
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?|decoder_layers)\.\d+\.")
# A part of a path that names another sense, or what joins one to the language model.
_TOWER = re.compile(
    r"(?:^|[._])(?:vision|visual|image|images|img|pixel|vit|vpm|sam|audio|apm|speech|sound|whisper|video|talker|token2wav|code2wav|"
    r"multi_modal_projector|multimodal_projector|mm_projector|mlp1|connector|aligner|qformer|resampler|perceiver)"
    r"(?=[._]|$|\d)"
)
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_\w+|wte|wpe|\w+_embeddings|embeddings?|shared)$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output|score|output_projection)$")
_EXPERTS = re.compile(r"(?:^|\.)(?:\w*experts?|shared_mlp|input_linear|output_linear)(?=\.|$)")
_ROUTER = re.compile(r"(?:^|\.)(?:\w*router\w*|gate|wg|gating|\w*expert_gate)(?=\.|$)")
# Narrow matrices that set the pace of a recurrent layer: Mamba's, and those of gated delta networks.
_STEP = re.compile(r"(?:^|\.)(?:dt_proj|x_proj|in_proj_ba|in_proj_a|in_proj_b)$")
# What only a mixer of Mamba's first kind has; vLLM rounds no part of such a one, whatever it is told.
_FIRST_MAMBA = re.compile(r"^(.+)\.x_proj(?:\.|$)")
_ONE_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?|decoder_layers)\.\d+$")


def is_tower(name: str) -> bool:
    """Tell whether a module or a tensor belongs to another sense, or joins one to the language model."""
    return _TOWER.search(name) is not None


@dataclass(frozen=True, slots=True)
class FloatRule:
    """The rule for one model.

    Attributes:
        experts: how many each layer has; 0 for a dense model.
        homes: paths that hold experts, and their routers with them.
        mixers: paths of recurrent layers that stay in float whole.
    """

    experts: int
    homes: frozenset[str]
    mixers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: Mapping[str, Any], names: Iterable[str]) -> FloatRule:
        """Read the rule off a config and the names of a model's modules or tensors."""
        inside = [name for name in names if _LAYER.search(name)]
        homes = {name[: match.start()] for name in inside if (match := _EXPERTS.search(name))}
        mixers = {match[1] for name in inside if (match := _FIRST_MAMBA.search(name))}
        return cls(expert_count(config), frozenset(homes), frozenset(mixers))

    def why(self, module: str, shape: Sequence[int]) -> str | None:
        """Return why a module with a weight of this shape stays in float; none for one that is quantized."""
        if _HEAD.search(module):
            return HEAD
        if is_tower(module):
            return TOWER
        if _EMBEDDING.search(module):
            return EMBEDDING
        if not _LAYER.search(module + "."):
            return OUTSIDE
        if _STEP.search(module):
            return STEP
        if module.rpartition(".")[0] in self.mixers:
            return MIXER
        return ROUTER if self._is_router(module, shape) else None

    def _is_router(self, module: str, shape: Sequence[int]) -> bool:
        """Tell whether a matrix chooses among experts: a row for each, or one row beside them, where experts are."""
        if len(shape) != 2 or not self.homes:
            return False
        home = next((home for home in _parents(module) if home in self.homes), None)
        if home is None or _EXPERTS.search(module[len(home) :]):
            return False
        rest = module[len(home) + 1 :]
        if _ROUTER.search(rest):
            return True
        # Where experts lie beside the attention, only a name tells a router from it.
        return shape[0] in {self.experts, 1} and "." not in rest and not _ONE_LAYER.search(home)


def _parents(module: str) -> Iterable[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module
