"""Plans the chat model for TensorRT-LLM: what differs from the vLLM lanes.

ModelOpt quantizes, an engine is compiled for fixed limits, and either may exist already: `TRT_CHECKPOINT_DIR` and
`TRTLLM_ENGINE_DIR` name them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.checkpoint.layers import LayerTable
from pipeline.checkpoint.prequantized import Prequantized, recognize
from pipeline.checkpoint.shape import Shape
from pipeline.embedded.texts import WINDOW_TOKENS
from pipeline.lanes import METHODS
from pipeline.plan import SEED, CalibrationPlan, ChatPlan, TrtPlan
from pipeline.plan.chat.chat_plan import ChatPlanner, Grouping
from pipeline.plan.chat.dataset import choose_dataset
from pipeline.plan.chat.grouping import HEADS, MOE_GATES, kept_patterns
from pipeline.source import CHECKPOINTS, HF_QUANT_CONFIG, SourceFacts
from pipeline.source.model_files import checkpoint_weights
from runtime.artifact import ArtifactError, Limits, Moe
from runtime.artifact.generations import older_model
from runtime.artifact.labels import PACKAGE, EngineLabel
from runtime.defaults import TENSORRT_LLM, TRT_GROUP_SIZES, first_set
from runtime.engines.trt.folders import CheckpointFolder, EngineFolder, Weights, parallel_of

# The line of versions that this lane is written for; compiled engines end with it.
VERSION_LINE = f"{TENSORRT_LLM.rpartition('.')[0]}."
# TensorRT-LLM's quantizer takes no more samples for AWQ, whatever it is told.
AWQ_MOST_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class TrtPlanner(ChatPlanner):
    """The planner of a chat model for TensorRT-LLM, one decision after the other."""

    @property
    def _compiles(self) -> bool:
        return self.lane is not None and self.lane.compiles

    def plan(self, facts: SourceFacts) -> ChatPlan | None:
        """Make the plan for a chat model; none when a problem stands in its way."""
        settings = self.settings
        if settings.trtllm_repo_dir:
            self.diagnostics.decide(
                "TRTLLM_REPO_DIR", "not used", "obsolete: the installed package holds the quantizer"
            )
        if settings.trt_checkpoint_dir and settings.trtllm_engine_dir:
            found = f"{settings.trt_checkpoint_dir} and {settings.trtllm_engine_dir}"
            self.diagnostics.problem("TRTLLM_ENGINE_DIR", "this or TRT_CHECKPOINT_DIR", found, "unset one")
        if not self._compiles and (settings.trt_checkpoint_dir or settings.trtllm_engine_dir):
            found, next_step = "TRT_BACKEND=pytorch", "unset TRT_CHECKPOINT_DIR and TRTLLM_ENGINE_DIR, or TRT_BACKEND"
            self.diagnostics.problem("TRT_BACKEND", "engine, for a checkpoint or engine that exists", found, next_step)
        self._check_version()
        prebuilt = self._prebuilt_weights()
        try:
            older_model(facts.config)
        except ArtifactError as error:
            expected, _, found = str(error).removeprefix("expected ").partition(", found ")
            found, _, next_step = found.partition("; ")
            self.diagnostics.problem("CHAT_MODEL", expected, found, next_step)
        chat = ChatPlanner.plan(self, facts)
        if chat is None:
            return None
        if self._compiles:
            reason = "named in TRTLLM_ENGINE_DIR" if settings.trtllm_engine_dir else "compiled for this GPU"
            self.diagnostics.decide("engine", self._label() or "none", reason)
        else:
            self.diagnostics.decide("engine", "PyTorch backend", "TRT_BACKEND=pytorch; nothing is compiled")
        engine, checkpoint = self.disk.engine, self.disk.checkpoint
        trt = TrtPlan(
            self._label(),
            checkpoint=checkpoint.folder if isinstance(checkpoint, CheckpointFolder) else None,
            engine=engine.folder if isinstance(engine, EngineFolder) else None,
        )
        return replace(chat, trt=trt, kept_in_float=() if prebuilt else chat.kept_in_float)

    def _label(self) -> str | None:
        try:
            return str(EngineLabel.of(self.machine, self.settings.tensor_parallel_size)) if self._compiles else None
        except ArtifactError:
            return None  # no GPU or no TensorRT-LLM, which is a problem that the lane has told already

    def _check_version(self) -> None:
        found = self.machine.packages.get(PACKAGE)
        if found and self._compiles and not found.startswith(VERSION_LINE):
            expected = f"{PACKAGE} {VERSION_LINE}x, which compiles engines"
            next_step = f"install {PACKAGE} {TENSORRT_LLM}"
            self.diagnostics.problem(PACKAGE, expected, found, next_step)

    def _prebuilt_weights(self) -> Weights | None:
        """Return the weights that are quantized already, in the folder that a variable names; none without one."""
        where = "TRTLLM_ENGINE_DIR" if self.disk.engine else "TRT_CHECKPOINT_DIR"
        found = self.disk.engine or self.disk.checkpoint
        if found is None:
            return None
        if isinstance(found, ArtifactError):
            self.diagnostics.problem(where, f"a folder of {PACKAGE}", str(found))
            return None
        if isinstance(found, EngineFolder):
            installed = self.machine.packages.get(PACKAGE)
            if installed and found.version != installed:
                expected, next_step = f"an engine of {PACKAGE} {installed}", "compile it again with this version"
                self.diagnostics.problem(where, expected, found.version, next_step)
        weights = found.weights
        if weights.method not in METHODS:
            expected = f"one of {', '.join(self.lane.methods if self.lane else METHODS)}"
            self.diagnostics.problem(where, expected, weights.method, "quantize the model here instead")
            return None
        if weights.parallel != self.settings.tensor_parallel_size:
            asked = f"TENSOR_PARALLEL_SIZE {self.settings.tensor_parallel_size}"
            self.diagnostics.problem(where, f"TENSOR_PARALLEL_SIZE {weights.parallel}, as it was made", asked)
        return weights

    def _method(self) -> str | None:
        prebuilt = self._prebuilt_weights()
        if prebuilt is None:
            return ChatPlanner._method(self)
        name = "TRTLLM_ENGINE_DIR" if self.settings.trtllm_engine_dir else "TRT_CHECKPOINT_DIR"
        self.diagnostics.decide("method", f"{prebuilt.method} ({METHODS[prebuilt.method].scheme})", f"{name} holds it")
        if self.lane and (refusal := self.lane.refusal(prebuilt.method, self.machine.sm, allow_emulated=False)):
            self.diagnostics.problem(
                name, f"a method that {self.lane.name} can run here", prebuilt.method, str(refusal)
            )
        return prebuilt.method

    def _recognize(self, facts: SourceFacts, bytes_per_weight: float | None) -> Prequantized | None:
        if self._compiles and facts.checkpoint:
            return recognize(facts.checkpoint, facts.name, bytes_per_weight=bytes_per_weight)
        return ChatPlanner._recognize(self, facts, bytes_per_weight)

    def _use_prequantized(self, found: Prequantized, facts: SourceFacts) -> str:
        method = ChatPlanner._use_prequantized(self, found, facts)
        if self._compiles and found.format == "trt-llm":
            self._check_checkpoint(found, facts)
        elif found.format == "modelopt" and HF_QUANT_CONFIG not in facts.sizes:
            expected = f"{HF_QUANT_CONFIG}, where TensorRT-LLM reads how the model is quantized"
            self.diagnostics.problem("CHAT_MODEL", expected, "none", "export it again, or name the float model")
        return method

    def _needed(self, facts: SourceFacts, found: Prequantized | None) -> SourceFacts:
        inside = checkpoint_weights(facts.sizes)
        if found and found.format == "trt-llm" and inside:
            # The engine is compiled from it; the float model beside it is not fetched.
            return replace(facts, weights=inside)
        return ChatPlanner._needed(self, facts, found)

    def _check_checkpoint(self, found: Prequantized, facts: SourceFacts) -> None:
        """Check a source that comes as a TensorRT-LLM checkpoint, or at least says so in its name."""
        expected, next_step = (
            f"a {PACKAGE} checkpoint in {facts.ref}, there or in {CHECKPOINTS}",
            "name the float model",
        )
        if not facts.checkpoint:
            told = f"none, though {found.recognized_by} tells of one"
            self.diagnostics.problem("CHAT_MODEL", expected, told, next_step)
        elif found.method not in METHODS:
            methods = ", ".join(self.lane.methods if self.lane else METHODS)
            self.diagnostics.problem("CHAT_MODEL", f"a checkpoint in one of {methods}", found.method, next_step)
        else:
            parallel, asked = parallel_of(facts.checkpoint), self.settings.tensor_parallel_size
            if parallel != asked:
                expected = f"{parallel}, which the checkpoint was made for"
                self.diagnostics.problem("TENSOR_PARALLEL_SIZE", expected, str(asked))

    def _check_quantizer(self) -> None:
        if self._prebuilt_weights() is None:
            ChatPlanner._check_quantizer(self)

    def _dtype(self, dtype: str) -> str:
        prebuilt = self._prebuilt_weights()
        self.diagnostics.decide(
            "arithmetic", prebuilt.dtype if prebuilt else self.settings.trt_dtype, "of what is not quantized"
        )
        return prebuilt.dtype if prebuilt else self.settings.trt_dtype

    def _grouping(self, method: str | None, table: LayerTable, moe: Moe | None) -> Grouping:
        if prebuilt := self._prebuilt_weights():
            return prebuilt.group_size, True, HEADS + (MOE_GATES if moe else ())
        kept = kept_patterns(table, moe=moe is not None, diagnostics=self.diagnostics)
        if method is None or not METHODS[method].grouped:
            return None, True, kept
        parallel, asked = self.settings.tensor_parallel_size, self.settings.trt_awq_block_size
        widths = ", ".join(map(str, table.widths)) + (f" on {parallel} GPUs" if parallel > 1 else "")
        fitting = [size for size in TRT_GROUP_SIZES if not table.ungrouped(size, parallel)]
        if asked is not None and asked not in fitting:
            choice = f"set it to {' or '.join(map(str, fitting))}" if fitting else "use 8bit"
            expected = f"{' or '.join(map(str, TRT_GROUP_SIZES))}, and a divisor of the widths {widths}"
            self.diagnostics.problem("TRT_AWQ_BLOCK_SIZE", expected, str(asked), choice)
        elif not fitting:
            self.diagnostics.problem(
                "CHAT_MODEL", f"widths that {TRT_GROUP_SIZES[-1]} divides, for AWQ", widths, "use 8bit"
            )
        else:
            size = first_set(asked, default=fitting[0])
            largest = f"the largest up to {TRT_GROUP_SIZES[0]} that divides the widths {widths}"
            reason = largest if asked is None else "TRT_AWQ_BLOCK_SIZE"
            self.diagnostics.decide("group size", size, reason)
            return size, True, kept
        return None, True, kept

    def _calibration(self, method: str | None, facts: SourceFacts, context: int | None) -> CalibrationPlan | None:
        if self._prebuilt_weights() is not None:
            return None
        dataset, reason = choose_dataset(facts, self.settings, self.disk, self.diagnostics)
        samples = self.settings.trt_calib_size
        if method == "int4_awq" and self._compiles and samples > AWQ_MOST_SAMPLES:
            samples = AWQ_MOST_SAMPLES
            reason += f"; TensorRT-LLM takes at most {samples} samples for AWQ"
        length = first_set(self.settings.trt_calib_seqlen, default=sum(self._lengths()))
        if context and length > context:
            length, reason = context, f"{reason}; the model was made for {context} tokens"
        self.diagnostics.decide(
            "calibration", f"{dataset}, {samples} × {length} tokens at most", f"{reason}; seed {SEED}"
        )
        return CalibrationPlan(dataset, samples, length)

    def _lengths(self) -> tuple[int, int]:
        """Return the longest prompt and the longest reply, in tokens."""
        settings = self.settings
        return (
            first_set(settings.trt_max_input_len, default=settings.chat_max_len),
            first_set(settings.trt_max_output_len, default=settings.chat_max_out + settings.thinking_max_tokens),
        )

    def _limits(self, shape: Shape) -> Limits | None:
        settings = self.settings
        if self.disk.engine is not None:
            return self._engine_limits()
        longest_in, longest_out = self._lengths()
        length = longest_in + longest_out
        name = "CHAT_MAX_LEN" if settings.trt_max_input_len is None else "TRT_MAX_INPUT_LEN"
        if shape.context and length > shape.context:
            found, next_step = f"a model made for {shape.context}", f"set it to {shape.context - longest_out} or less"
            self.diagnostics.problem(name, f"{length} tokens of context", found, next_step)
        if longest_in < WINDOW_TOKENS:
            expected = f"at least {WINDOW_TOKENS} tokens, the length of the held-out texts"
            self.diagnostics.problem(name, expected, str(longest_in), "raise it")
        batch = settings.trt_max_batch_size
        if batch is None and self._compiles:
            next_step = "set it to the sequences that will run at once, or name an engine in TRTLLM_ENGINE_DIR"
            self.diagnostics.problem(
                "TRT_MAX_BATCH_SIZE", "a number, because it is baked into the engine", "none", next_step
            )
        if self.lane is None:
            return None
        reason = "default of the PyTorch backend here" if batch is None else "TRT_MAX_BATCH_SIZE"
        self.diagnostics.decide("batch", first_set(batch, default=self.lane.batch), reason)
        self.diagnostics.decide("context", f"{length} tokens", f"{longest_in} in + {longest_out} out")
        return Limits(
            max_batch_size=first_set(batch, default=self.lane.batch),
            max_input_len=longest_in,
            max_output_len=longest_out,
            max_model_len=length,
            tensor_parallel_size=settings.tensor_parallel_size,
        )

    def _engine_limits(self) -> Limits | None:
        engine = self.disk.engine
        if not isinstance(engine, EngineFolder):
            return None  # told already
        wanted = self.settings.trt_max_batch_size
        if wanted is not None and wanted > engine.max_batch_size:
            found, next_step = str(wanted), "lower it, or compile another engine"
            expected = f"at most {engine.max_batch_size}, baked into TRTLLM_ENGINE_DIR"
            self.diagnostics.problem("TRT_MAX_BATCH_SIZE", expected, found, next_step)
        self.diagnostics.decide("batch", engine.max_batch_size, "baked into TRTLLM_ENGINE_DIR")
        self.diagnostics.decide("context", f"{engine.max_seq_len} tokens", "baked into TRTLLM_ENGINE_DIR")
        return Limits(
            max_batch_size=engine.max_batch_size,
            max_input_len=engine.longest_prompt,
            max_output_len=max(1, engine.max_seq_len - engine.longest_prompt),
            max_model_len=engine.max_seq_len,
            tensor_parallel_size=engine.weights.parallel,
        )
