"""The quantize job: all that a quantizer's worker is told, and the files that it reads and copies.

The quantizers need other versions of compressed-tensors and transformers than the engines, so they run as workers in an
environment of their own; `worker.py` starts them and reads their progress.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pipeline.checkpoint.config_reader import architectures, read_object
from pipeline.stages.stage import StageError

CONFIG = "config.json"
# Files of the source that the quantizer writes anew, or that hold the float weights.
NOT_COPIED = frozenset({CONFIG, "README.md", "recipe.yaml"})
WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf", ".pth", ".pt", ".h5")

# What a model is loaded with beside its weights.
NEEDED_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken")

CHOOSE_DATA_SET = "name a calibration data set in AWQ_CALIB_DATASET"


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """The inputs that decide what a quantizer writes.

    Attributes:
        method: awq, gptq, fp8 or int8 in the vLLM lanes; int4_awq, fp8 or int8_sq for TensorRT-LLM.
        model: folder of the float model.
        out: folder to write; it must not hold anything yet.
        group_size: weights that share a scale, for the 4-bit methods.
        symmetric: whether the scale is symmetric about zero, so that no zero point is stored.
        kept_in_float: names of modules, or patterns behind `re:`, that are not quantized.
        samples: JSON lines, each a list of token ids; none for methods that look at no text.
        sequence_length: tokens of a sample that are used, at most.
        seed: of every random number generator.
        device: cpu or cuda.
        dtype: of what is not quantized, such as float16; `auto` is the model's own.
        tensor_parallel: GPUs that will share the model.
        backend: TensorRT-LLM: `engine` for a checkpoint to compile, `pytorch` for a Hugging Face folder.
    """

    method: str
    model: Path
    out: Path
    group_size: int | None
    symmetric: bool
    kept_in_float: tuple[str, ...]
    samples: Path | None
    sequence_length: int
    seed: int
    device: str
    dtype: str = "auto"
    tensor_parallel: int = 1
    backend: str = "engine"

    def keeps(self, module: str) -> bool:
        """Tell whether a module is one of those that the plan keeps in float."""
        for name in self.kept_in_float:
            if re.match(name[3:], module) if name.startswith("re:") else name == module:
                return True
        return False

    def write(self, path: Path) -> None:
        """Write the job to a JSON file."""
        document = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> QuantizeJob:
        """Read a job from the JSON file that `write` wrote.

        Raises:
            StageError: the file has fields that no job has.
        """
        document = json.loads(path.read_bytes())
        unknown = document.keys() - {field.name for field in fields(cls)}
        if unknown:
            found = ", ".join(sorted(unknown))
            raise StageError("quantize", f"expected the fields of a quantize job, found {found}", path)
        samples = document["samples"]
        document |= {
            "model": Path(document["model"]),
            "out": Path(document["out"]),
            "samples": Path(samples) if samples else None,
            "kept_in_float": tuple(document["kept_in_float"]),
        }
        return cls(**document)


def read_samples(path: Path, sequence_length: int) -> list[list[int]]:
    """Read calibration samples as token ids, each cut to `sequence_length` tokens; empty lines are skipped.

    Raises:
        StageError: a line is no list of token ids, or there is no sample.
    """
    samples: list[list[int]] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            tokens = json.loads(line)
            if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens) or not tokens:
                what = f"expected a list of token ids in line {number}, found {line[:40]!r}"
                raise StageError("quantize", what, path, "choose another calibration data set")
            samples.append(tokens[:sequence_length])
    if not samples:
        raise StageError("quantize", "expected calibration samples, found none", path, "choose another data set")
    return samples


def samples_of(job: QuantizeJob) -> list[list[int]]:
    """Read the calibration samples of a job whose method needs them.

    Raises:
        StageError: it has none.
    """
    if job.samples is None:
        raise StageError("quantize", f"{job.method} needs calibration samples, found none", next_step=CHOOSE_DATA_SET)
    return read_samples(job.samples, job.sequence_length)


def copy_auxiliary_files(model: Path, out: Path) -> None:
    """Put beside the quantized weights what a quantizer does not write: all other files, and the class's own name.

    Tokenizer, chat template, generation config and licence are copied byte for byte.
    """
    _keep_class_name(model, out)
    for path in sorted(model.iterdir()):
        if path.is_file() and path.name not in NOT_COPIED and not path.name.startswith("."):
            if path.name.endswith(WEIGHT_SUFFIXES):
                continue
            # A picture that cannot be copied must not end hours of work.
            with contextlib.nullcontext() if path.name.endswith(NEEDED_SUFFIXES) else contextlib.suppress(OSError):
                shutil.copyfile(path, out / path.name)
    if (templates := model / "additional_chat_templates").is_dir():
        shutil.copytree(templates, out / templates.name, dirs_exist_ok=True)


def _keep_class_name(model: Path, out: Path) -> None:
    """Spell the model's class as its source does.

    Transformers writes its own spelling, which an engine may not know: `PhimoeForCausalLM` for `PhiMoEForCausalLM`.
    """
    with contextlib.suppress(ValueError, FileNotFoundError):
        config = json.loads((out / CONFIG).read_bytes())
        told, written = architectures(read_object(model / CONFIG)), architectures(config)
        if told != written and [*map(str.casefold, told)] == [*map(str.casefold, written)]:
            config["architectures"] = [*told]
            (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
