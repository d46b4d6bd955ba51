"""Labels of compiled engines: which GPU architecture, TensorRT-LLM, CUDA and number of GPUs an engine belongs to.

A repository may hold engines for several GPUs, one in each folder `trt-llm/engines/LABEL/`. An engine runs only on the
architecture, the TensorRT-LLM version and the number of GPUs that it was compiled for; within one major version, CUDA's
libraries stay compatible.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.artifact import ArtifactError
from runtime.defaults import CUDA, TENSORRT_LLM, first_set
from runtime.host.machine import Machine

ENGINES_FOLDER = "trt-llm/engines"
PACKAGE = "tensorrt-llm"

_LABEL = re.compile(
    r"sm(?P<sm>[1-9]\d{1,2})_trt-llm-(?P<version>[0-9][\w.+]*?)_cuda(?P<cuda>\d+\.\d+)"
    r"(_tp(?P<tensor>[2-9]|[1-9]\d+))?"
)


@dataclass(frozen=True, slots=True)
class EngineLabel:
    """What an engine is bound to.

    >>> str(EngineLabel(90, "1.2.1", "13.0"))
    'sm90_trt-llm-1.2.1_cuda13.0'
    >>> str(EngineLabel(90, "1.2.1", "13.0", 2))
    'sm90_trt-llm-1.2.1_cuda13.0_tp2'

    Attributes:
        sm: compute capability as an integer, 90 for 9.0.
        version: of TensorRT-LLM.
        cuda: major and minor version of the CUDA that TensorRT-LLM was made for.
        tensor: GPUs that share every layer; a label says it where it is more than one.
    """

    sm: int
    version: str
    cuda: str
    tensor: int = 1

    def __str__(self) -> str:
        shared = f"_tp{self.tensor}" if self.tensor > 1 else ""
        return f"sm{self.sm}_trt-llm-{self.version}_cuda{self.cuda}{shared}"

    @classmethod
    def parse(cls, text: str) -> EngineLabel:
        """Read a label.

        Raises:
            ValueError: it is none.
        """
        found = _LABEL.fullmatch(text)
        if found is None:
            raise ValueError(f"expected a label such as {cls(90, TENSORRT_LLM, CUDA)}, found {text!r}")
        return cls(int(found["sm"]), found["version"], found["cuda"], int(found["tensor"] or 1))

    @classmethod
    def of(cls, machine: Machine, tensor: int = 1) -> EngineLabel:
        """The label of engines that this machine compiles and runs for so many GPUs.

        Raises:
            ArtifactError: no GPU, no TensorRT-LLM, or its CUDA is unknown.
        """
        if machine.sm is None:
            raise ArtifactError("expected an NVIDIA GPU for a compiled engine, found none; run it where the GPU is")
        version = machine.packages.get(PACKAGE)
        if version is None:
            raise ArtifactError(f"expected {PACKAGE}, found none; use the runtime-trt image")
        cuda = machine.torch_cuda or machine.driver_cuda
        if cuda is None:
            raise ArtifactError("expected PyTorch for CUDA, found one without; install the trt lane's lock again")
        return cls(machine.sm, version, cuda, tensor)

    def runs_on(self, machine: EngineLabel) -> bool:
        """Whether an engine with this label loads on a machine with that one, if there are GPUs enough."""
        return (self.sm, self.version, _major(self.cuda)) == (machine.sm, machine.version, _major(machine.cuda))


def pick(labels: Iterable[str], machine: Machine, tensor: int | None = None) -> str:
    """The label of the engine that this machine needs, among those that exist.

    Folders whose names are no labels are passed over. Among several that would run, the one for the fewest GPUs is
    taken, then that of the machine's own CUDA, then the newest.

    Args:
        labels: those that exist.
        machine: this machine.
        tensor: GPUs that shall share the model; none takes what the machine's GPUs can run.

    Raises:
        ArtifactError: none fits. One line: what is needed, which exist, and how to build one.
    """
    mine = EngineLabel.of(machine, first_set(tensor, default=1))
    existing = {}
    for text in labels:
        try:
            existing[text] = EngineLabel.parse(text)
        except ValueError:
            continue
    fitting = [
        text
        for text, label in existing.items()
        if label.runs_on(mine) and (label.tensor == tensor if tensor else label.tensor <= len(machine.gpus))
    ]
    if not fitting:
        found = ", ".join(sorted(existing)) or "none"
        raise ArtifactError(
            f"expected an engine for {mine}, found {found}; build one on this GPU with `yap-pipeline run --trt`, "
            "or use GPUs, TENSOR_PARALLEL_SIZE and an image that fit an existing one"
        )

    def rank(text: str) -> tuple[int, bool, tuple[int, ...], str]:
        label = existing[text]
        return -label.tensor, label.cuda == mine.cuda, _numbers(label.cuda), text

    return max(fitting, key=rank)


def _major(version: str) -> str:
    return version.partition(".")[0]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
