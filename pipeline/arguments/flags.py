"""Each option of the command line by itself: what it is called, what it takes, and what its help says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.arguments.option_objects import OptionTable, TableOption
from pipeline.lanes import LANES, gate_specs, gpus
from pipeline.lanes.gates import Thresholds
from runtime.defaults import QUANTIZATION, TUNE_MINUTES


def _method_help() -> str:
    """The words for methods, with the lanes that take them."""
    flags: dict[tuple[str, ...], list[str]] = {}
    for lane in LANES.values():
        flags.setdefault(lane.words, []).append(lane.flag)
    return "; ".join(f"with {' or '.join(lanes)} {', '.join(words)}" for words, lanes in flags.items())


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="[METHOD] CHAT_MODEL [TOOL_MODEL]",
        show_default=False,
        help=f"METHOD: {_method_help()} (else QUANTIZATION, which is {QUANTIZATION}). "
        "A model: a folder, a hub id (`org/name`, `org/name@revision`), or `embedded`.",
    ),
]
# A flag for each lane.
Lanes = Annotated[
    Mapping[str, bool],
    OptionTable(
        {
            name: TableOption(name, Annotated[bool, typer.Option(lane.flag, help=lane.help)], default=False)
            for name, lane in LANES.items()
        }
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the artifact; else artifacts/MODEL-METHOD-LANE.")]
CacheDir = Annotated[Path | None, typer.Option(help="Folder of finished stages; else AWQ_CACHE_DIR.")]
ToolOnly = Annotated[bool, typer.Option("--tool-only", help="The one model named is the classifier; no chat model.")]
PositiveLabel = Annotated[
    str | None,
    typer.Option(help="The classifier's label that means yes, by name or index; needed where the names do not say it."),
]
ToolLabels = Annotated[
    list[str] | None,
    typer.Option(
        "--tool-label",
        metavar="LABEL=TOOL[@THRESHOLD]",
        help="A label of the classifier, by name or index, and the tool that it asks for; once for each tool.",
    ),
]
ToolUtterances = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="JSONL of labelled utterances (text, label or labels) to measure the classifier's tools on; else "
        "TOOL_UTTERANCES.",
    ),
]
TuneFor = Annotated[
    Literal["latency", "throughput", "off"] | None,
    typer.Option(help="vLLM on a GPU: tune the engine's options for this; else TUNE, which is latency."),
]
TuneMinutes = Annotated[
    float | None,
    typer.Option(
        help=f"Minutes that tuning may take; what is measured until then decides. Else TUNE_MINUTES, which is "
        f"{TUNE_MINUTES:g}."
    ),
]
Emulated = Annotated[bool, typer.Option("--allow-emulated", help="Allow FP8 on a CPU, ten times slower.")]
Force = Annotated[bool, typer.Option("--force", help="Do every stage again; FORCE_REBUILD=true does the same.")]
Fallback = Annotated[list[str] | None, typer.Option(help="Method to try when the gates fail; may be repeated.")]
Push = Annotated[
    bool, typer.Option("--push-quant", help="Publish to HF_PUSH_REPO_ID afterwards. Without it nothing is uploaded.")
]
CheckPush = Annotated[
    bool, typer.Option("--push-quant", help="Check what publishing to HF_PUSH_REPO_ID needs too. Nothing is uploaded.")
]
GpuName = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        help=f"Plan for a GPU that is not here: {', '.join(gpus.GPUS)}. TENSOR_PARALLEL_SIZE "
        "(times PIPELINE_PARALLEL_SIZE) says how many.",
    ),
]
Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of the artifact.")]
SignKey = Annotated[Path | None, typer.Option(help="Sign with this elliptic-curve private key (PEM).")]
# An option for each gate's bound, as the table of gates has them.
Bounds = Annotated[
    Thresholds,
    OptionTable(
        {
            spec: TableOption(
                option.parameter,
                Annotated[float | None, typer.Option(option.name, min=option.least, max=option.most, help=option.help)],
            )
            for spec, option in gate_specs.OPTIONS.items()
        }
    ),
]
