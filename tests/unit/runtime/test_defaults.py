"""Defaults stand once: pages, scripts in the images and clients that must copy them hold the same."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline import cli
from pipeline.publish import push
from pipeline.settings import PipelineSettings
from runtime import __version__, command, defaults
from runtime.artifact import CARD_NAME, METADATA_NAME, SIGNATURE_NAME, TOOL_FOLDER, verify
from runtime.artifact.lanes import SERVED_LANES
from runtime.artifact.repository import Reference
from runtime.deployment.models import Deployment
from runtime.deployment.settings import RuntimeSettings
from runtime.engines import EngineOptions, Sampling
from runtime.engines.vllm.arguments import ENVIRONMENT
from runtime.host import logs
from runtime.server import process as server
from runtime.server.connection import ConnectionLimits
from runtime.text.prompt import Budgets
from runtime.turns.sessions import history, keeper
from runtime.wire import frames
from runtime.wire.messages import DEFAULT_BOUNDS, MAX_IDENTIFIER_CHARS, MAX_PREFIX_CHARS, MAX_STYLE_CHARS, Grammar
from tests.harness.scripted import settings

ROOT = Path(__file__).resolve().parents[3]
IMAGES = ROOT / "images"
GENERATED = {"environment.md"}
PAGES = {path.name: path.read_text("utf-8") for path in [*ROOT.glob("docs/*.md"), ROOT / "README.md"]}

NUMBER = r"(?P<{}>\d[\d,]*(?:\.\d+)?)(?![\w./,]*\w)"
# `NAME` (5), `NAME` 5, `NAME`, 5, `NAME`: 5, `NAME` is 5; and 5 (`NAME`).
AFTER = re.compile(rf"`(?P<name>[A-Z][A-Z0-9_]+)`(?:\s\(|,\s|:\s|\sis\s|\s){NUMBER.format('after')}")
BEFORE = re.compile(rf"{NUMBER.format('before')}\s\(`(?P<name>[A-Z][A-Z0-9_]+)`\)")
SENTINEL = re.compile(r"`(?P<after>__[A-Z]+__)`\s\(`(?P<name>[A-Z_]+)`\)")


def told(text: str) -> Iterator[tuple[str, str]]:
    """The variables that a page names with a value, and that value."""
    for pattern in (AFTER, BEFORE, SENTINEL):
        for found in pattern.finditer(text):
            groups = found.groupdict()
            yield found["name"], (groups.get("after") or groups["before"]).replace(",", "")


def default_of(name: str) -> list[Any]:
    """What a variable is when nothing sets it, in each program that reads it."""
    found: list[Any] = []
    for fields in (RuntimeSettings.model_fields, PipelineSettings.model_fields):
        if info := fields.get(name.lower()):
            extra = info.json_schema_extra
            fallback = extra.get("fallback") if isinstance(extra, dict) else None
            found.append(fallback if info.default is None else info.default)
    return found


def differences(text: str) -> list[str]:
    """One line for each variable that a page gives another default than the code."""
    wrong = []
    for name, value in told(text):
        for default in default_of(name):
            shown = f"{default:.10g}" if isinstance(default, int | float) else str(default)
            if shown != (value if value.startswith("_") else f"{float(value):.10g}"):
                wrong.append(f"{name}: {value}, found {shown}")
    return wrong


# Parts of the GPU's memory depend on what else is served, so that a page names two; they are compared below.
TWO_DEFAULTS = {"CHAT_GPU_FRAC", "TOOL_GPU_FRAC"}


@pytest.mark.house
@pytest.mark.parametrize("page", sorted(PAGES.keys() - GENERATED))
def test_a_page_names_the_codes_defaults(page: str) -> None:
    assert [line for line in differences(PAGES[page]) if line.partition(":")[0] not in TWO_DEFAULTS] == []


def test_the_pages_name_many_defaults() -> None:
    named = {name for page, text in PAGES.items() if page not in GENERATED for name, _ in told(text)}
    assert named >= {
        "TOOL_DECISION_THRESHOLD", "TOOL_HISTORY_TOKENS", "TOOL_TIMEOUT_S", "CHAT_MAX_LEN", "CHAT_MAX_OUT",
        "CHAT_PROMPT_MAX_TOKENS", "HISTORY_MAX_TOKENS", "USER_UTT_MAX_TOKENS", "MAX_CONCURRENT_CONNECTIONS",
        "WS_HANDSHAKE_ACQUIRE_TIMEOUT_S", "WS_IDLE_TIMEOUT_S", "WS_CLOSE_IDLE_CODE", "WS_MAX_MESSAGE_BYTES",
        "WS_MAX_MESSAGES_PER_WINDOW", "WS_MESSAGE_WINDOW_SECONDS", "WS_MAX_CANCELS_PER_WINDOW", "GEN_TIMEOUT_S",
        "WS_CANCEL_SENTINEL", "WS_END_SENTINEL", "SESSION_IDLE_TTL_SECONDS", "DRAIN_TIMEOUT_S",
        "CACHE_RESET_INTERVAL_SECONDS", "CHAT_PROMPT_UPDATE_MAX_PER_WINDOW", "TRT_CALIB_SIZE", "HF_PUSH_PRIVATE",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "from `TOOL_DECISION_THRESHOLD` (0.5) on",
        "after `GEN_TIMEOUT_S`, 61), then",
        "closes with 4001 (`WS_CLOSE_IDLE_CODE`)",
        "`HISTORY_MAX_TOKENS` 3,001; whole",
        "(`TRT_CALIB_SIZE` is 65), and",
        "`__STOP__` (`WS_CANCEL_SENTINEL`)",
        "above `WS_MAX_MESSAGE_BYTES` (262145) close",
    ],
)
def test_a_page_that_drifted_is_noticed(text: str) -> None:
    assert len(differences(text)) == 1


def test_the_pages_other_figures_are_the_codes() -> None:
    operations, protocol, images = PAGES["operations.md"], PAGES["protocol.md"], PAGES["images.md"]
    alone, chat, tool = defaults.GPU_ALONE, defaults.GPU_CHAT_BESIDE_TOOL, defaults.GPU_TOOL_BESIDE_CHAT
    assert f"`CHAT_GPU_FRAC` ({chat:.2f})" in operations
    assert f"`TOOL_GPU_FRAC` ({tool:.2f})" in operations
    assert f"alone, either takes {alone:.2f}" in operations
    assert f"within {server.SHUTDOWN_TIMEOUT_S:g} seconds" in operations
    assert f"off its way: within {keeper.PACE_S * 1000:.0f} ms," in operations
    assert f"turns that ended in the last {keeper.PACE_S:g} s," in (ROOT / "docs/scaling.md").read_text("utf-8")
    assert f"rotated at {defaults.LOG_MEGABYTES} MB with three old files kept" in operations
    assert defaults.LOG_FILES == 3
    assert f"`{defaults.LOG_NAME}`" in operations
    assert f"(13 needs {defaults.MINIMUM_DRIVER})" in operations
    assert f"the driver ({defaults.MINIMUM_DRIVER} or\nnewer)" in images
    assert f"-p {defaults.PORT}:{defaults.PORT}" in images
    assert f"at most {history.HISTORY_MAX_BYTES} bytes (of the server's memory" in protocol
    assert f"and {history.HISTORY_MAX_MESSAGES} messages of history" in " ".join(protocol.split())
    assert protocol.count(f"at most {MAX_PREFIX_CHARS} characters; kept") == 2
    assert f"letters, at most {MAX_STYLE_CHARS}; kept" in protocol
    assert f"a string of at most {MAX_IDENTIFIER_CHARS} characters" in protocol
    for page in ("operations.md", "publishing.md"):
        assert f"sm90_trt-llm-{defaults.TENSORRT_LLM}_cuda{defaults.CUDA}" in PAGES[page]


def rows(page: str, heading: str) -> dict[int, str]:
    """A table's rows by the number in their first cell."""
    section = PAGES[page].partition(heading)[2] + "\n\n"
    table = section[: section.index("\n\n", section.index("|---"))]
    return {int(row[1]): row[0] for row in re.finditer(r"^\| (\d+) \|.*$", table, re.MULTILINE)}


def test_the_close_codes_are_the_pages() -> None:
    codes = rows("protocol.md", "## Close codes")
    ours = {frames.CLOSE_NORMAL, frames.CLOSE_GOING_AWAY, frames.CLOSE_POLICY, frames.CLOSE_TRY_LATER}
    # 1007 and 1009 are what the WebSocket library closes with.
    assert codes.keys() == ours | {defaults.IDLE_CLOSE_CODE, 1007, 1009}
    assert frames.CLOSE_ABNORMAL not in codes
    assert f"close {frames.CLOSE_TRY_LATER}" in PAGES["operations.md"]


def test_the_exit_codes_are_the_pages(images_stack: ModuleType) -> None:
    ours = {os.EX_USAGE, os.EX_DATAERR, os.EX_UNAVAILABLE, os.EX_SOFTWARE}
    assert rows("operations.md", "## Exit status").keys() == ours | {0, server.EX_TERMINATED}
    ended = {command.UNWRITTEN, command.UNREAD}
    pipeline = {cli.WRONG_REQUEST, cli.FAILED_GATE, cli.FAILED_STAGE, cli.INTERRUPTED}
    assert rows("artifact.md", "| exit code").keys() == pipeline | ended | {0}
    assert pipeline == {64, 65, 1, 130}
    exits = re.search(r"\| exit \|(.*)\|", PAGES["images.md"])
    assert exits is not None
    assert set(map(int, re.findall(r"(?<!\w)\d+(?= )", exits[1]))) == ours | {images_stack.EX_CONFIG}
    assert images_stack.EX_CONFIG == os.EX_CONFIG


# What is filled from the settings begins with the same values


def test_classes_that_settings_fill_have_the_settings_defaults() -> None:
    given = settings()
    assert ConnectionLimits() == ConnectionLimits(given.ws_idle_timeout_s, given.ws_close_idle_code)
    assert given.grammar() == Grammar()
    assert given.bounds() == DEFAULT_BOUNDS
    assert given.sampling(defaults.OUTPUT_TOKENS) == Sampling()
    assert Budgets() == Budgets(*(default_of(name)[0] for name in PARTS))
    options = EngineOptions()
    assert (options.kv_cache_dtype, options.cpu_kv_cache_gib) == (given.kv_dtype, given.vllm_cpu_kvcache_space)
    assert options.kv_block_reuse == given.trt_kv_enable_block_reuse
    fields = inspect.signature(Deployment).parameters
    assert fields["generation_timeout"].default == given.gen_timeout_s
    assert fields["tool_timeout"].default == given.tool_timeout_s
    assert inspect.signature(verify.check_artifact).parameters["gpu_fraction"].default == options.gpu_fraction


PARTS = ("CHAT_PROMPT_MAX_TOKENS", "HISTORY_MAX_TOKENS", "USER_UTT_MAX_TOKENS", "CHAT_MAX_LEN")


@pytest.mark.parametrize("name", sorted(RuntimeSettings.model_fields.keys() & PipelineSettings.model_fields.keys()))
def test_both_programs_mean_the_same_by_a_variable(name: str) -> None:
    stated = [value for value in default_of(name.upper()) if value is not None]
    # The server leaves lane and GPUs to the artifact, which the pipeline decides.
    assert len(set(stated)) == 1
    assert len(stated) == (1 if name in {"inference_engine", "tensor_parallel_size", "pipeline_parallel_size"} else 2)


def test_what_must_agree_agrees() -> None:
    assert Reference("acme/model").revision == push.BRANCH
    assert history.HISTORY_MAX_BYTES == defaults.MESSAGE_BYTES
    assert logs.ROTATE_BYTES == defaults.LOG_MEGABYTES << 20
    assert (METADATA_NAME, SIGNATURE_NAME, CARD_NAME, TOOL_FOLDER) == (
        "build_metadata.json", "model.sig", "README.md", "tool",
    )  # fmt: skip


# Copies that cannot import us


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images_stack() -> ModuleType:
    return script(IMAGES / "preflight.py")


def test_the_stack_check_means_the_same(images_stack: ModuleType) -> None:
    assert images_stack.MINIMUM_DRIVER == defaults.MINIMUM_DRIVER
    assert images_stack.MINIMUM_SHM_MIB == defaults.MINIMUM_SHM_MIB
    assert ".".join(map(str, images_stack.CUDA)) == defaults.CUDA
    assert {name: lane.packages[0] for name, lane in SERVED_LANES.items()} == images_stack.ENGINES
    assert {name for name, lane in SERVED_LANES.items() if lane.on_gpu} == images_stack.USES_CUDA


def text(name: str) -> str:
    return (IMAGES / name).read_text("utf-8")


def test_the_images_scripts_mean_the_same() -> None:
    from runtime.server import app

    health, image = text("health.py"), text("runtime.Dockerfile")
    assert f'os.environ.get("PORT") or {defaults.PORT})' in health
    assert f"EXPOSE {defaults.PORT}\n" in image
    assert f'"{defaults.HOST}"' in health
    asked = re.search(r'request\("GET", "([^"]+)"\)', health)
    assert asked is not None
    routes = {node.value for node in ast.walk(ast.parse(inspect.getsource(app))) if isinstance(node, ast.Constant)}
    assert asked[1] in routes
    # A check that takes longer than Docker waits would never be healthy.
    waits = {name: int(value) for name, value in re.findall(r"--(\w+)=(\d+)s", image)}
    patience = re.search(r"timeout=(\d+)", health)
    assert patience is not None
    assert int(patience[1]) < waits["timeout"]
    # Every part of an image's start names the same places.
    folder = "lib/compiled"
    assert f"/opt/yap/venv/{folder}" in text("cc.sh")
    assert f"$venv/{folder}" in text("drivers.sh")
    assert 'Path(sys.prefix) / "lib" / "compiled"' in text("preflight.py")
    users = {
        (name, user)
        for name in ("base.Dockerfile", "pipeline.Dockerfile", "runtime.Dockerfile")
        for user in re.findall(r"(?:--uid |-o |USER )(\d+)", text(name))
    }
    assert {user for _, user in users} == {"2000"}
    assert len(users) == 3


def bake_defaults() -> Mapping[str, str]:
    blocks = re.findall(
        r'^variable "(\w+)" \{\n.*?^  default += "([^"]*)"', (ROOT / "bake.hcl").read_text(), re.MULTILINE | re.DOTALL
    )
    return dict(blocks)


def project() -> str:
    return (ROOT / "pyproject.toml").read_text("utf-8")


def test_versions_are_the_locks_and_the_projects() -> None:
    bake, install = bake_defaults(), text("install.sh")
    assert bake["VERSION"] == __version__
    assert bake["CUDA_VERSION"] == defaults.CUDA
    for base in ("BASE_DEVEL", "BASE_RUNTIME"):
        assert f"cuda:{defaults.CUDA}." in bake[base]
    engines = dict(re.findall(r'^    (\w+) +?= "(\S+ \S+)"', (ROOT / "bake.hcl").read_text(), re.MULTILINE))
    assert engines["trt"] == f"tensorrt-llm {defaults.TENSORRT_LLM}"
    assert f"\ntensorrt-llm=={defaults.TENSORRT_LLM}\n" in text("locks/trt.unhashed")
    assert f"TensorRT-LLM {defaults.TENSORRT_LLM} needs" in text("locks/trt.in")
    for lane in ("vllm", "cpu", "tool"):
        name, version = engines[lane].split()
        extra = re.search(rf"^{lane} = \[(.*?)\]", project(), re.MULTILINE | re.DOTALL)
        assert extra is not None
        assert f'"{name}=={version}"' in extra[1]
    torch = engines["tool"].split()[1]
    assert f"\nTORCH_CPU={torch}+cpu\n" in install
    assert set(re.findall(r'"torch==([\d.]+)"', project())) == {torch}
    assert f"torch {re.search(r'TORCH_TRT=([^+]+)', install)[1]} for CUDA" in PAGES["images.md"]  # type: ignore[index]


def test_the_pythons_are_the_same_everywhere() -> None:
    least, most = re.findall(r"requires-python = \">=3\.(\d+),<3\.(\d+)\"", project())[0]
    pythons = [f"3.{minor}" for minor in range(int(least), int(most))]
    assert f"{' | '.join(pythons)}) ;;" in text("install.sh")
    allowed = re.search(r"contains\(\[([^\]]+)\], PYTHON_VERSION\)", (ROOT / "bake.hcl").read_text())
    assert allowed is not None
    assert re.findall(r"[\d.]+", allowed[1]) == pythons
    assert bake_defaults()["PYTHON_VERSION"] == pythons[0]
    assert f"Python {pythons[0]} to {pythons[-1]}" in PAGES["README.md"]


def test_the_entry_point_checks_the_stack_before_what_touches_an_engine() -> None:
    checked = re.search(r"^(serve .*)\)$", text("entrypoint.sh"), re.MULTILINE)
    assert checked is not None
    from runtime.cli import app as runtime_app

    known = {command.name or getattr(command.callback, "__name__", "") for command in cli.app.registered_commands}
    known |= {getattr(command.callback, "__name__", "") for command in runtime_app.registered_commands}
    assert set(checked[1].split(" | ")) <= known


# The clients, which run with nothing of ours installed


def test_the_clients_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.client import options

    for name in ("SERVER_WS_URL", "RECV_TIMEOUT_SEC"):
        monkeypatch.delenv(name, raising=False)
    chosen = options.read_options(options.parser("").parse_args([]))
    assert chosen.url == f"ws://127.0.0.1:{defaults.PORT}/ws"
    # A client that gives up before the server does would not hear of a timeout.
    assert chosen.recv_timeout == options.Options("").recv_timeout >= defaults.GENERATION_TIMEOUT_S
    assert set(options.SAMPLING) <= DEFAULT_BOUNDS.keys()
    talk = (ROOT / "client/yap_client/talk.py").read_text("utf-8")
    assert f"closes what is silent for {defaults.IDLE_TIMEOUT_S:g} s" in talk
    keep_alive = re.search(r"^KEEP_ALIVE_S = (\d+)", talk, re.MULTILINE)
    assert keep_alive is not None
    assert 2 * int(keep_alive[1]) < defaults.IDLE_TIMEOUT_S


def test_defaults_stand_on_the_ground_floor() -> None:
    tree = ast.parse(inspect.getsource(defaults))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    assert all(module and module.partition(".")[0] in sys.stdlib_module_names for module in modules)


# Numbers and texts that can mean nothing but one default; others, such as 60 and 0.5, stand for many things.
DISTINCT = {
    defaults.INPUT_TOKENS, defaults.TOOL_TOKENS, defaults.TOOL_THRESHOLD, defaults.IDLE_CLOSE_CODE,
    defaults.MESSAGE_BYTES, defaults.PORT, defaults.MINIMUM_DRIVER, defaults.CANCEL_SENTINEL, defaults.END_SENTINEL,
    defaults.TENSORRT_LLM, defaults.LOG_NAME, METADATA_NAME, SIGNATURE_NAME, defaults.CALIBRATION_DATASET,
    defaults.HOST, frames.CLOSE_GOING_AWAY, frames.CLOSE_ABNORMAL, frames.CLOSE_POLICY, frames.CLOSE_TRY_LATER,
}  # fmt: skip
# The same number for another thing: a layer's width in the embedded model's config, and held-out tokens.
OTHERS = {("source_facts.py", defaults.TOOL_TOKENS), ("estimate.py", defaults.IDLE_CLOSE_CODE)}


@pytest.mark.house
def test_a_default_is_written_once() -> None:
    places: dict[object, set[str]] = {value: set() for value in DISTINCT}
    for path in [*ROOT.glob("runtime/**/*.py"), *ROOT.glob("pipeline/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and not isinstance(node.value, bool) and node.value in DISTINCT:
                places[node.value].add(path.name)
    for value, names in places.items():
        assert len([name for name in names if (name, value) not in OTHERS]) == 1, (value, names)


@pytest.mark.parametrize("image", ["runtime", "pipeline"])
def test_images_switch_the_same_kernels_off_as_the_server(image: str) -> None:
    """Those that a compiler would have to make, which no image has: as built, so served."""
    said = dict(re.findall(r"\b(VLLM_USE_\w+)=(\w+)", (IMAGES / f"{image}.Dockerfile").read_text("utf-8")))
    assert said == {name: value for name, value in ENVIRONMENT.items() if name.startswith("VLLM_USE_")}
    assert len(said) > 1
