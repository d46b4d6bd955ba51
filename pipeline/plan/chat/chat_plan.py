"""Plans the chat model: method, grouping, calibration and limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pipeline.checkpoint.config_reader import ConfigError, ConfigReader
from pipeline.checkpoint.layers import SMALLEST_GROUP, LayerTable, layer_table, stored_dtype
from pipeline.checkpoint.packed import packed_weight, unpacked
from pipeline.checkpoint.prequantized import Prequantized, recognize
from pipeline.checkpoint.shape import Shape, ShapeError, mixture_of_experts
from pipeline.lanes import LANES, METHODS, Lane
from pipeline.lanes.methods import SMALL_MODEL
from pipeline.plan import SEED, BuildRequest, CalibrationPlan, ChatPlan
from pipeline.plan.chat.dataset import choose_dataset
from pipeline.plan.chat.grouping import check_sharing, kept_patterns, odd_layers, odd_patterns
from pipeline.plan.chat.storage import check_float, is_stored_otherwise
from pipeline.plan.diagnostics import Diagnostics
from pipeline.plan.disk_facts import DiskFacts
from pipeline.settings import PipelineSettings
from pipeline.source import SourceFacts
from runtime.artifact import Limits, Moe
from runtime.defaults import QUANTIZATION, first_set
from runtime.host.machine import Machine
from runtime.text.thought import THINKS, WAY_OUT

# What a chat template adds around persona, history and utterance.
TEMPLATE_TOKENS = 128
# Tokens in a block of the KV cache, which the context is rounded to.
CACHE_BLOCK = 16

# The size of groups, whether they have no zero point, and what stays in float.
Grouping = tuple[int | None, bool, tuple[str, ...]]

# Columns of a head for which vLLM's attention on a CPU has a kernel; a test compares them with its own list.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


@dataclass(frozen=True, slots=True)
class ChatPlanner:
    """The planner of a chat model, one decision after the other.

    Attributes:
        request: the command line.
        settings: the environment.
        machine: what it will be built on.
        disk: what lies at the paths that the request and the settings name.
        lane: none where the request names no lane that can be used; then all that does not depend on it is checked.
        quantizer: whether an environment with the lane's quantizer was found.
        diagnostics: gets every decision and problem.
    """

    request: BuildRequest
    settings: PipelineSettings
    machine: Machine
    disk: DiskFacts
    lane: Lane | None
    quantizer: bool
    diagnostics: Diagnostics

    def plan(self, facts: SourceFacts) -> ChatPlan | None:
        """Make the plan for a chat model; none when a problem stands in its way."""
        if facts.problems:
            # Its method can still be checked, so that this mistake too is told now.
            self._method()
            return None
        try:
            return self._plan(facts, Shape.of(facts.config))
        except ShapeError as missing:
            found = f"none in the config.json of {facts.ref}"
            self.diagnostics.problem("CHAT_MODEL", missing.dimension, found, "name a causal language model")
        except ConfigError as error:
            expected = f"{error.expected} in {error.key} of the config.json of {facts.ref}"
            self.diagnostics.problem("CHAT_MODEL", expected, error.found, "correct it, or name another model")
        self._method()
        return None

    def _plan(self, facts: SourceFacts, shape: Shape) -> ChatPlan | None:
        if facts.unread:
            reason = f"the headers of the weights could not be read: {facts.unread}"
            self.diagnostics.decide("layers", "those of a usual decoder of this shape", reason)
        architecture = facts.architecture
        if architecture and not re.search(r"CausalLM|LMHead|ConditionalGeneration", architecture):
            found, next_step = f"{architecture} in {facts.ref}", "a classifier comes second"
            self.diagnostics.problem("CHAT_MODEL", "a causal language model", found, next_step)
        self._check_thought(facts)
        moe = mixture_of_experts(facts.config, facts.name, facts.tensors)
        if moe:
            self.diagnostics.decide("mixture of experts", moe.experts or "yes", f"recognized by {moe.recognized_by}")
        if ConfigReader(facts.config).flag("is_encoder_decoder", default=False):
            found, next_step = f"an encoder with a decoder in {facts.ref}", "name a causal language model"
            self.diagnostics.problem("CHAT_MODEL", "a decoder alone", found, next_step)
        prequantized = self._recognize(facts, self._bytes_per_weight(facts, shape))
        if prequantized is None and (name := packed_weight(facts.tensors)):
            expected = f"quantization_config in the config.json of {facts.ref}, for weights that came quantized"
            kind = f"none, and {name} ({facts.tensors[name].dtype})"
            self.diagnostics.problem("CHAT_MODEL", expected, kind, "name the float model")
        elif prequantized is None:
            check_float(facts, self.diagnostics)
        tensors = unpacked(facts.tensors, prequantized.schemes) if prequantized else facts.tensors
        # The names in a TensorRT-LLM checkpoint are its own, and each rank has its share.
        table = layer_table(facts.config, {} if prequantized and prequantized.format == "trt-llm" else tensors)
        self._check_parallel(shape, table)
        self._tell_heads(shape)
        method = self._use_prequantized(prequantized, facts) if prequantized else self._method()
        kept: tuple[str, ...] = ()
        group, symmetric, calibration = None, True, None
        if prequantized:
            group = prequantized.group_size
            self._check_groups(table, group)
        elif method != "none":
            if table.conv1d and method:
                found = "transformers' Conv1D, which no quantizer here knows"
                self.diagnostics.problem("CHAT_MODEL", "linear layers, to be quantized", found, "use none")
            group, symmetric, kept = self._grouping(method, table, moe)
            calibration = self._calibration(method, facts, shape.context)
            self._check_quantizer()
            if self.lane and method and (unable := self.lane.quantizing_refusal(facts.config, method)):
                expected = f"a model that {self.lane.name} can quantize by {method}"
                self.diagnostics.problem("CHAT_MODEL", expected, f"{facts.ref}: {unable.reason}", unable.way_out)
        why = self.lane.known_incompatibility(facts.config, method) if self.lane and method else None
        if self.lane and method and moe and not prequantized:
            why = why or self.lane.experts_refusal(method)
        if self.lane and why:
            found = f"{facts.config.get('model_type')} with {method}"
            self.diagnostics.problem(
                "CHAT_MODEL", f"a combination known to work in the {self.lane.name} lane", found, str(why)
            )
        if self.lane and method and (unserved := self.lane.unserved(facts.config, method)):
            self.diagnostics.decide("served on this machine", "no", unserved)
        limits = self._limits(shape)
        thinking = self.settings.thinking_max_tokens
        if limits and 0 < limits.max_output_len <= thinking:
            expected = f"less than {limits.max_output_len}, the tokens that are given out at most"
            self.diagnostics.problem("THINKING_MAX_TOKENS", expected, str(thinking), "leave room for the reply")
        if method is None or limits is None:
            return None
        return ChatPlan(
            source=self._needed(facts, prequantized),
            method=method,
            scheme=prequantized.scheme if prequantized else METHODS[method].scheme,
            group_size=group,
            symmetric=symmetric,
            kept_in_float=kept,
            prequantized=prequantized,
            calibration=calibration,
            limits=limits,
            dtype=self._dtype(shape.dtype or stored_dtype(facts.tensors) or "bfloat16"),
            moe=moe,
            parameters=table.parameters,
            layers=table,
            thinking=thinking,
        )

    def _bytes_per_weight(self, facts: SourceFacts, shape: Shape) -> float | None:
        """Return the size of a weight: what its headers say, else by the shape; none where neither is known."""
        if any(len(tensor.shape) > 1 for tensor in facts.tensors.values()):
            return None if packed_weight(facts.tensors) else 2.0
        return facts.weight_bytes / shape.parameters if facts.weight_bytes else None

    def _needed(self, facts: SourceFacts, found: Prequantized | None) -> SourceFacts:
        """Return the facts without what this lane does not fetch: a checkpoint for another engine."""
        return replace(facts, checkpoint={}) if facts.checkpoint and self.lane and not self.lane.compiles else facts

    def _check_groups(self, table: LayerTable, group: int | None) -> None:
        """Check that the groups of a source that came quantized are whole on every GPU."""
        parallel = self.settings.tensor_parallel_size
        odd = table.ungrouped(group, parallel) if group and parallel > 1 else ()
        cut = next((layer for layer in odd if layer.cut == "inputs" and layer.inputs_on(parallel) is not None), None)
        if cut:
            expected = f"a number that leaves groups of {group} whole in {cut.name} ({cut.inputs} inputs)"
            self.diagnostics.problem("TENSOR_PARALLEL_SIZE", expected, str(parallel), "lower it")

    def _check_thought(self, facts: SourceFacts) -> None:
        thinking = self.settings.thinking_max_tokens
        if facts.thinks and not thinking:
            self.diagnostics.problem("THINKING_MAX_TOKENS", THINKS, "0", WAY_OUT)
        elif facts.thinks:
            reason = "the model always thinks; thought is cut off there, and the reply goes on"
            self.diagnostics.decide("thought", f"{thinking} tokens at most", reason)
        elif facts.thought_off:
            self.diagnostics.decide("thought", "off", f"by {', '.join(facts.thought_off)} of the chat template")

    def _tell_heads(self, shape: Shape) -> None:
        """Warn of heads that the CPU's attention has no kernel for: the engine would die at its first token."""
        size = shape.attention // max(shape.heads)
        latent = not shape.key_value_heads
        if self.lane and not self.lane.on_gpu and not latent and size not in CPU_HEAD_SIZES:
            reason = f"likely to fail: vLLM's CPU build knows {', '.join(map(str, CPU_HEAD_SIZES))}; use another lane"
            self.diagnostics.decide("head size", size, reason)

    def _check_quantizer(self) -> None:
        if self.lane and not self.quantizer:
            packages = self.lane.quantizer
            name = " and ".join("llm-compressor" if package == "llmcompressor" else package for package in packages)
            next_step = "run `make setup`, or name its interpreter in QUANTIZE_PYTHON"
            self.diagnostics.problem("QUANTIZE_PYTHON", f"an environment with {name}", "none", next_step)

    def _dtype(self, dtype: str) -> str:
        if dtype != "float32":
            return dtype
        self.diagnostics.decide("arithmetic", "bfloat16", "the source is in float32, which costs twice the memory")
        return "bfloat16"

    def _method(self) -> str | None:
        asked, sm = self.request.method, self.machine.sm
        word, where = (asked, "METHOD") if asked else (self.settings.quantization.lower(), "QUANTIZATION")
        if self.lane is None:
            known = {word for lane in LANES.values() for word in lane.words}
            if word not in known:
                self.diagnostics.problem(where, f"one of {', '.join(sorted(known))}", repr(word))
            return None
        if word not in self.lane.words:
            expected = f"one of {', '.join(self.lane.words)} in the {self.lane.name} lane"
            self.diagnostics.problem(where, expected, repr(word))
            return None
        method, reason = self.lane.resolve(word, sm)
        if refusal := self.lane.refusal(method, sm, allow_emulated=self.request.allow_emulated):
            self.diagnostics.problem(where, f"a method that {self.lane.name} can run here", method, str(refusal))
        source = "" if asked else "; QUANTIZATION" + (f" is {QUANTIZATION} by default" if word == QUANTIZATION else "")
        self.diagnostics.decide("method", f"{method} ({METHODS[method].scheme})", reason + source)
        return method

    def _recognize(self, facts: SourceFacts, bytes_per_weight: float | None) -> Prequantized | None:
        return recognize(facts.config, facts.name, bytes_per_weight=bytes_per_weight)

    def _use_prequantized(self, found: Prequantized, facts: SourceFacts) -> str:
        if is_stored_otherwise(facts, found, self.diagnostics):
            return found.method
        lane = self.lane
        if lane and (refusal := lane.loading_refusal(found.format, found.schemes, self.machine.sm)):
            expected = f"a source in float, or one of {', '.join(lane.formats)} that {lane.name} can run"
            kind = f"{found.format} ({found.scheme}); {refusal}" if found.format in lane.formats else found.format
            self.diagnostics.problem("CHAT_MODEL", expected, kind, "name the float model")
        elif lane and (refusal := lane.refusal(found.method, self.machine.sm, allow_emulated=True)):
            expected = f"a source that {lane.name} can run here"
            self.diagnostics.problem("CHAT_MODEL", expected, found.method, refusal.reason)
        if lane and found.format == "gptq" and found.symmetric is False:
            expected = "weights without zero points, which are all that vLLM loads of GPTQ"
            self.diagnostics.problem("CHAT_MODEL", expected, "sym: false", "name the float model")
        reason = f"the source is quantized already, by {found.recognized_by}; it is not quantized again"
        if self.request.method:
            reason += f", and {self.request.method} is not used"
        self.diagnostics.decide("method", f"{found.method} ({found.scheme})", reason)
        return found.method

    def _grouping(self, method: str | None, table: LayerTable, moe: Moe | None) -> Grouping:
        kept = kept_patterns(table, moe=moe is not None, diagnostics=self.diagnostics)
        if method is None or not METHODS[method].grouped:
            return None, True, kept
        # A small model loses so much to 4 bits that a small group's extra scales are worth their size.
        small, parallel = table.parameters < SMALL_MODEL, self.settings.tensor_parallel_size
        size = table.group_size(32 if small else 128, parallel) or SMALLEST_GROUP
        odd = odd_layers(table, size, parallel)
        if odd is None:
            self._refuse_widths(table, parallel)
            return None, True, kept
        kept += odd_patterns(odd, size, self.diagnostics)
        widths = ", ".join(map(str, table.widths)) + (f" on {parallel} GPUs" if parallel > 1 else "")
        why = "a model this small loses least with it, and it" if small else "the largest up to 128 that"
        self.diagnostics.decide("group size", size, f"{why} divides the widths {widths}")
        # With 4 bits a zero point pays, for GPTQ most of all (docs/quality.md). ModelOpt's INT4 has none.
        symmetric = not METHODS[method].zero_point
        self.diagnostics.decide("zero point", "no" if symmetric else "yes", f"as {method} does best")
        return size, symmetric, kept

    def _refuse_widths(self, table: LayerTable, parallel: int) -> None:
        """Tell which layer holds no groups: in itself, or in the share of it that each GPU gets."""
        fitting = [str(size) for size in (1, 2, 4, 8) if odd_layers(table, SMALLEST_GROUP, size) is not None]
        layer = max(table.ungrouped(SMALLEST_GROUP, parallel), key=lambda layer: layer.parameters)
        if not fitting:
            expected = f"widths that {SMALLEST_GROUP} divides, for groups of weights"
            found = f"{', '.join(map(str, table.widths))}, of which {layer.inputs} in {layer.name}"
            self.diagnostics.problem("CHAT_MODEL", expected, found, "use 8bit")
        elif layer.inputs_on(parallel) is not None:  # told by `check_parallel` else
            expected = f"a number that leaves groups of {SMALLEST_GROUP} whole in {layer.name} ({layer.inputs} inputs)"
            next_step = f"set it to {' or '.join(fitting)}, or use 8bit"
            self.diagnostics.problem("TENSOR_PARALLEL_SIZE", expected, str(parallel), next_step)

    def _calibration(self, method: str | None, facts: SourceFacts, context: int | None) -> CalibrationPlan | None:
        if method and not METHODS[method].calibrated:
            self.diagnostics.decide("calibration", "none", f"{method} scales activations as they come")
            return None
        dataset, reason = choose_dataset(facts, self.settings, self.disk, self.diagnostics)
        samples, length = self.settings.awq_nsamples, self.settings.awq_seqlen
        if context and length > context:
            length, reason = context, f"{reason}; the model was made for {context} tokens"
        self.diagnostics.decide(
            "calibration", f"{dataset}, {samples} × {length} tokens at most", f"{reason}; seed {SEED}"
        )
        return CalibrationPlan(dataset, samples, length)

    def _limits(self, shape: Shape) -> Limits | None:
        settings = self.settings
        longest_out = settings.chat_max_out + settings.thinking_max_tokens
        needed = settings.chat_max_len + longest_out + TEMPLATE_TOKENS
        length = -(-needed // CACHE_BLOCK) * CACHE_BLOCK
        if shape.context and length > shape.context:
            most = shape.context // CACHE_BLOCK * CACHE_BLOCK - TEMPLATE_TOKENS - longest_out
            next_step = f"set CHAT_MAX_LEN to {most} or less" if most >= 16 else "choose a model with a longer context"
            found = f"a model made for {shape.context}"
            self.diagnostics.problem("CHAT_MAX_LEN", f"{length} tokens of context", found, next_step)
        if self.lane is None:
            return None
        batch = first_set(settings.max_num_seqs, default=self.lane.batch)
        reason = "MAX_NUM_SEQS" if settings.max_num_seqs is not None else f"default of the {self.lane.name} lane"
        self.diagnostics.decide("batch", batch, reason)
        thought = f" + THINKING_MAX_TOKENS {settings.thinking_max_tokens}" if settings.thinking_max_tokens > 0 else ""
        reason = f"CHAT_MAX_LEN {settings.chat_max_len} + CHAT_MAX_OUT {settings.chat_max_out}{thought} + template"
        self.diagnostics.decide("context", f"{length} tokens", f"{reason}, rounded to the cache's block")
        return Limits(
            max_batch_size=batch,
            max_input_len=settings.chat_max_len,
            max_output_len=longest_out,
            max_model_len=length,
            tensor_parallel_size=settings.tensor_parallel_size,
            pipeline_parallel_size=settings.pipeline_parallel_size,
        )

    def _check_parallel(self, shape: Shape, table: LayerTable) -> None:
        tensor, stages = self.settings.tensor_parallel_size, self.settings.pipeline_parallel_size
        check_sharing(shape, table, (tensor, stages), self.machine.gpus, self.lane, self.diagnostics)
