"""Labels of compiled engines: which GPU architecture, TensorRT-LLM and CUDA an engine belongs to.

A repository may hold engines for several GPUs, one in each folder `trt-llm/engines/LABEL/`. An engine runs only on the
architecture and the TensorRT-LLM version that it was compiled for; within one major version, CUDA's libraries stay
compatible.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.artifact import ArtifactError
from runtime.defaults import CUDA, TENSORRT_LLM
from runtime.host.machine import Machine

ENGINES_FOLDER = "trt-llm/engines"
PACKAGE = "tensorrt-llm"

_LABEL = re.compile(r"sm(?P<sm>[1-9]\d{1,2})_trt-llm-(?P<version>[0-9][\w.+]*?)_cuda(?P<cuda>\d+\.\d+)")


@dataclass(frozen=True, slots=True)
class EngineLabel:
    """What an engine is bound to.

    >>> str(EngineLabel(90, "1.2.1", "13.0"))
    'sm90_trt-llm-1.2.1_cuda13.0'

    Attributes:
        sm: compute capability as an integer, 90 for 9.0.
        version: of TensorRT-LLM.
        cuda: major and minor version of the CUDA that TensorRT-LLM was made for.
    """

    sm: int
    version: str
    cuda: str

    def __str__(self) -> str:
        return f"sm{self.sm}_trt-llm-{self.version}_cuda{self.cuda}"

    @classmethod
    def parse(cls, text: str) -> EngineLabel:
        """Read a label.

        Raises:
            ValueError: it is none.
        """
        found = _LABEL.fullmatch(text)
        if found is None:
            raise ValueError(f"expected a label such as {cls(90, TENSORRT_LLM, CUDA)}, found {text!r}")
        return cls(int(found["sm"]), found["version"], found["cuda"])

    @classmethod
    def of(cls, machine: Machine) -> EngineLabel:
        """The label of engines that this machine compiles and runs.

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
        return cls(machine.sm, version, cuda)

    def runs_on(self, machine: EngineLabel) -> bool:
        """Whether an engine with this label loads on a machine with that one."""
        return (self.sm, self.version, _major(self.cuda)) == (machine.sm, machine.version, _major(machine.cuda))


def pick(labels: Iterable[str], machine: Machine) -> str:
    """The label of the engine that this machine needs, among those that exist.

    Folders whose names are no labels are passed over. Among several that would run, the one of the machine's own CUDA
    is taken, then the newest.

    Raises:
        ArtifactError: none fits. One line: what is needed, which exist, and how to build one.
    """
    mine = EngineLabel.of(machine)
    existing = {}
    for text in labels:
        try:
            existing[text] = EngineLabel.parse(text)
        except ValueError:
            continue
    fitting = [text for text, label in existing.items() if label.runs_on(mine)]
    if not fitting:
        found = ", ".join(sorted(existing)) or "none"
        raise ArtifactError(
            f"expected an engine for {mine}, found {found}; build one on this GPU with `yap-pipeline run --trt`, "
            "or use a GPU and an image that fit an existing one"
        )
    return max(fitting, key=lambda text: (existing[text].cuda == mine.cuda, _numbers(existing[text].cuda), text))


def _major(version: str) -> str:
    return version.partition(".")[0]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
