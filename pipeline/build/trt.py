"""Building for TensorRT-LLM: `trtllm-build` compiles a checkpoint into an engine for this GPU.

The command line is used rather than `LLM(...).save`: that loads the engine to serve it, which needs memory for a KV
cache, and then copies it, which needs the disk twice. The engine is compiled into a new folder, so that nothing old is
taken for its output, and a failure's last lines are told.

    trt-llm/engines/LABEL/      rank0.engine, …, config.json; tokenizer and generation config travel along
    ./                          tokenizer, chat template and generation config, for the runtime's own use
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.build.layout import copy_model, copy_templates, is_left_out
from pipeline.stages.gpu import require_cuda
from pipeline.stages.stage import StageError
from runtime.artifact import ArtifactError
from runtime.artifact.generations import write_for_older
from runtime.artifact.labels import ENGINES_FOLDER
from runtime.engines.trt.arguments import STEP_TOKENS
from runtime.engines.trt.folders import CheckpointFolder, EngineFolder, is_checkpoint, is_engine, read_config

if TYPE_CHECKING:
    from pipeline.plan import BuildPlan, ChatPlan, TrtPlan
    from pipeline.progress import Progress

COMMAND = "trtllm-build"
TAIL_LINES = 12

# Matrix products of 16-bit numbers are fastest with the plugin; for FP8 TensorRT's own kernels are.
GEMM_PLUGIN = {"fp8": "disable"}


def build(model_dir: Path, out: Path, *, source: Path, plan: BuildPlan, progress: Progress) -> None:
    """Compile the engine, and copy what the runtime needs beside it.

    Args:
        model_dir: a TensorRT-LLM checkpoint, or an engine that was compiled already.
        out: an empty folder.
        source: the model as it came, whose tokenizer travels along.
        plan: its limits and label decide what is compiled.
        progress: told of each step.

    Raises:
        StageError: it is no checkpoint, belongs to other settings, or did not compile.
    """
    chat, trt = _planned(plan, out)
    try:
        engine = out / ENGINES_FOLDER / (trt.label or "")
        engine.parent.mkdir(parents=True)
        if trt.engine:
            progress.step(f"taking the engine {trt.engine}")
            shutil.copytree(trt.engine, engine)
        else:
            progress.step(f"compiling an engine for {trt.label}")
            compile_engine(CheckpointFolder.read(model_dir), engine, chat, progress)
        _check_engine(EngineFolder.read(engine), chat)
    except ArtifactError as error:
        raise StageError("build", str(error)) from error
    copy_templates(source, out)
    auxiliary = [path for path in sorted(source.iterdir()) if _is_auxiliary(path)]
    for path in auxiliary:
        shutil.copyfile(path, out / path.name)
        if path.name != "config.json" and not (engine / path.name).exists():
            shutil.copyfile(path, engine / path.name)
    for folder in (out, engine):
        _write_for_older(folder)


def build_folder(model_dir: Path, out: Path, *, source: Path, plan: BuildPlan, progress: Progress) -> None:
    """Copy the quantized Hugging Face folder that the PyTorch backend loads; nothing is compiled.

    Raises:
        StageError: the folder is no model.
    """
    del source, plan  # everything travels with the quantized model already
    progress.step("laying out the model")
    copy_model(model_dir, out)
    _write_for_older(out)


def compile_engine(checkpoint: CheckpointFolder, engine: Path, chat: ChatPlan, progress: Progress) -> None:
    """Run `trtllm-build` into a new folder, and move its output to `engine`.

    Raises:
        StageError: the command is missing, the GPU cannot be used, or it failed, with its last lines.
    """
    if checkpoint.weights.parallel != chat.limits.tensor_parallel_size:
        what = f"expected a checkpoint for {chat.limits.tensor_parallel_size} GPUs, found {checkpoint.weights.parallel}"
        raise StageError("build", what, checkpoint.folder, "quantize it again, or set TENSOR_PARALLEL_SIZE")
    command = find_command()
    require_cuda("build")
    with tempfile.TemporaryDirectory(prefix=".engine-", dir=engine.parent.resolve()) as folder:
        output = Path(folder) / "engine"
        # It leaves its timing cache in the folder that it runs in.
        words = [str(command), *flags(checkpoint.folder.resolve(), output, chat)]
        run_command(words, Path(folder), checkpoint.folder, progress)
        output.rename(engine)


def flags(checkpoint: Path, output: Path, chat: ChatPlan) -> list[str]:
    """Return the arguments of `trtllm-build`, without the command itself."""
    limits = chat.limits
    given = {
        "--checkpoint_dir": checkpoint,
        "--output_dir": output,
        "--max_batch_size": limits.max_batch_size,
        "--max_input_len": limits.max_input_len,
        "--max_seq_len": limits.max_model_len,
        # A prompt is not cut into chunks, so that the longest one must fit into a step.
        "--max_num_tokens": max(STEP_TOKENS, limits.max_input_len),
        "--max_beam_width": 1,
        "--workers": limits.tensor_parallel_size,
        "--kv_cache_type": "paged",
        "--remove_input_padding": "enable",
        "--context_fmha": "enable",
        # Without it a prompt cannot start from cached blocks.
        "--use_paged_context_fmha": "enable",
        "--gpt_attention_plugin": "auto",
        "--gemm_plugin": GEMM_PLUGIN.get(chat.method, "auto"),
        "--log_level": "info",
    }
    return [str(word) for pair in given.items() for word in pair]


def find_command() -> Path:
    """Find `trtllm-build` in this environment, else on the PATH.

    Raises:
        StageError: there is none.
    """
    beside = Path(sys.executable).with_name(COMMAND)
    found = beside if beside.is_file() else shutil.which(COMMAND)
    if found is None:
        raise StageError("build", f"expected the command {COMMAND}, found none", "", "use the pipeline-trt image")
    return Path(found)


def run_command(command: list[str], inside: Path, where: Path, progress: Progress) -> None:
    """Run a command to its end, and report each of its lines as it comes.

    Args:
        command: what to run.
        inside: the folder to run it in.
        where: what it works on, for a failure's message.
        progress: told of each line.

    Raises:
        StageError: it failed, with its last lines.
    """
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with subprocess.Popen(
        command,
        cwd=inside,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            for line in process.stdout or ():
                if text := line.rpartition("\r")[2].strip():
                    tail.append(text)
                    progress.step(f"{COMMAND}: {text}")
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if code != 0:
        what = f"{COMMAND} ended with exit code {code}: {' | '.join(tail) or 'no output'}"
        raise StageError("build", what, where, "read its last lines, then run the same command again")


def _write_for_older(folder: Path) -> None:
    """Say in the lane's transformers' words what a newer one wrote: TensorRT-LLM loads tokenizer and config with it."""
    try:
        write_for_older(folder)
    except ArtifactError as error:
        raise StageError("build", str(error), folder) from error


def _planned(plan: BuildPlan, out: Path) -> tuple[ChatPlan, TrtPlan]:
    if plan.chat is None or plan.chat.trt is None or plan.chat.trt.label is None:
        raise StageError("build", "expected a plan for a compiled engine, found none", out)
    return plan.chat, plan.chat.trt


def _check_engine(engine: EngineFolder, chat: ChatPlan) -> None:
    """Compare a compiled engine with the plan."""
    limits, found = chat.limits, engine.weights.method
    if found != chat.method:
        raise StageError("build", f"expected an engine in {chat.method}, found {found}", engine.folder)
    for name, wanted, baked in (
        ("max_batch_size", limits.max_batch_size, engine.max_batch_size),
        ("max_input_len", limits.max_input_len, engine.longest_prompt),
        ("max_seq_len", limits.max_model_len, engine.max_seq_len),
    ):
        if baked != wanted:
            raise StageError("build", f"expected an engine with {name} {wanted}, found {baked}", engine.folder)


def _is_auxiliary(path: Path) -> bool:
    """Tell whether a file of the source belongs beside the engine: all but weights and TensorRT-LLM's own config."""
    if not path.is_file() or is_left_out(path.name):
        return False
    if path.name.endswith((".safetensors", ".safetensors.index.json", ".engine")):
        return False
    if path.name != "config.json":
        return True
    config = read_config(path.parent, "a model")
    return not is_checkpoint(config) and not is_engine(config)
