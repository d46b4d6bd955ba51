"""A recipe follows every import that can be executed, raises on what is missing, and depends on nothing else."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stages import recipe as recipes_home
from pipeline.stages.recipe import CHOOSE_AT_CALL, NOT_COUNTED, OURS, ROOT, MissingSourceError, closure, recipe
from pipeline.stages.recipes import ENGINES, recipe_inputs, recipe_of

STAGES = [
    ("source", None),
    ("tool", None),
    ("calibration", None),
    *((stage, engine) for stage in ("quantize", "build", "reference", "validate") for engine in ENGINES),
    ("build", None),
    ("validate", None),
]


def tree(root: Path, **files: str) -> Path:
    """Packages `pipeline` and `runtime` with these modules; `__` in a name stands for a dot."""
    for package in OURS:
        (root / package).mkdir(parents=True, exist_ok=True)
        (root / package / "__init__.py").touch()
    for name, text in files.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        for folder in reversed(path.relative_to(root).parents[:-1]):
            (root / folder).mkdir(exist_ok=True)
            (root / folder / "__init__.py").touch()
        path.write_text(text)
    return root


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own packages at another install path."""
    root = tmp_path_factory.mktemp("elsewhere")
    for package in OURS:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.mark.parametrize(
    "text",
    [
        "import runtime.used",
        "import runtime.used as other",
        "import os, runtime.used",
        "from runtime import used",
        "from runtime import other, used as name",
        "from runtime.used import VALUE",
        "from runtime.used import *",
        "def work():\n    from runtime.used import VALUE",
        "async def work():\n    if True:\n        import runtime.used",
        "class A:\n    def work(self):\n        return lambda: __import__('runtime.used')",
        "try:\n    import runtime.used\nexcept ImportError:\n    pass",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import runtime.used",
        "from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    import runtime.used",
        "run('runtime.used')",
        "run(worker='runtime.used.VALUE')",
        "match 1:\n    case 1:\n        import runtime.used",
    ],
)
def test_what_a_module_can_load_is_counted_with_its_package(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, pipeline__work=text, runtime__used="VALUE = 1", runtime__other="")
    found = closure(["pipeline.work"], root)
    assert {"pipeline", "pipeline.work", "runtime", "runtime.used"} <= found.keys()


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("pipeline__room__work", "from . import used"),
        ("pipeline__room__work", "from .used import VALUE"),
        ("pipeline__room__deep__work", "from .. import used"),
        ("pipeline__room__deep__work", "def work():\n    from ..used import VALUE"),
        ("pipeline__other__work", "from ..room.used import VALUE"),
    ],
)
def test_relative_imports_are_followed(tmp_path: Path, module: str, text: str) -> None:
    root = tree(tmp_path, **{module: text}, pipeline__room__used="VALUE = 1")
    assert {"pipeline.room", "pipeline.room.used"} <= closure([module.replace("__", ".")], root).keys()


def test_a_package_counts_by_its_init_and_not_by_the_modules_that_nobody_imports(tmp_path: Path) -> None:
    root = tree(tmp_path, pipeline__room__used="", pipeline__room__unused="", runtime__first="")
    (root / "pipeline/room/__init__.py").write_text("import runtime.first\n")
    found = closure(["pipeline.room.used"], root)
    assert set(found) == {"pipeline", "pipeline.room", "pipeline.room.used", "runtime", "runtime.first"}


def test_what_only_a_type_checker_imports_is_not_counted(tmp_path: Path) -> None:
    text = "import typing\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import runtime.a\n"
    text += "if typing.TYPE_CHECKING:\n    import runtime.b\n"
    root = tree(tmp_path, pipeline__work=text, runtime__a="", runtime__b="")
    assert set(closure(["pipeline.work"], root)) == {"pipeline", "pipeline.work"}


@pytest.mark.parametrize(
    "text",
    [
        "import runtime.gone",
        "from runtime import gone",
        "from runtime.gone import VALUE",
        "from runtime.used import gone",
        "def work():\n    from runtime.gone import VALUE",
        "def work():\n    from . import gone",
        "run('runtime.gone')",
        "run('runtime.used.gone')",
        "run('runtime.room.gone.Worker')",
    ],
)
def test_a_name_that_leads_nowhere_raises(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, pipeline__work=text, runtime__used="VALUE = 1", runtime__room__used="")
    with pytest.raises(MissingSourceError, match="gone"):
        recipe("pipeline.work", root=root)


@pytest.mark.parametrize("name", ["pipeline.gone", "pipeline.work.gone", "gone", "json", "", "pipeline."])
def test_an_unknown_module_raises(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingSourceError):
        recipe("pipeline.work", name, root=tree(tmp_path, pipeline__work=""))


def test_a_recipe_of_nothing_raises() -> None:
    for names in ((), ("pipeline.stages.stage",), ("pipeline.validate.scores", "pipeline.progress")):
        with pytest.raises(MissingSourceError):
            recipe(*names)


@pytest.mark.parametrize(
    "entry",
    [
        "pipeline.room:data/gone.txt",
        "pipeline.room:data/gone*",
        "pipeline.room:data",
        "pipeline.room:",
        "pipeline.room",
        "pipeline.gone:data/a.txt",
    ],
)
def test_data_that_matches_no_file_raises(tmp_path: Path, entry: str) -> None:
    root = tree(tmp_path, pipeline__room__work="")
    (root / "pipeline/room/data").mkdir()
    (root / "pipeline/room/data/a.txt").write_text("a")
    assert recipe("pipeline.room.work", data=("pipeline.room:data/*.txt",), root=root)
    with pytest.raises(MissingSourceError):
        recipe("pipeline.room.work", data=("pipeline.room:data/*.txt", entry), root=root)


def test_data_counts_by_name_and_content(tmp_path: Path) -> None:
    root = tree(tmp_path, pipeline__room__work="")
    file = root / "pipeline/room/a.txt"
    file.write_text("a")
    keys = {recipe("pipeline.room.work", root=root)}
    keys.add(recipe("pipeline.room.work", data=("pipeline.room:*.txt",), root=root))
    file.write_text("b")
    keys.add(recipe("pipeline.room.work", data=("pipeline.room:*.txt",), root=root))
    file.rename(file.with_name("b.txt"))
    keys.add(recipe("pipeline.room.work", data=("pipeline.room:*.txt",), root=root))
    assert len(keys) == 4


GRAPHS = st.lists(st.sets(st.integers(0, 7), max_size=3), min_size=8, max_size=8)
WAYS = ("from pipeline import m{}", "import pipeline.m{}", "def f():\n    import pipeline.m{}", "S = 'pipeline.m{}'")


@given(GRAPHS, st.integers(0, 7), st.integers(0, 7))
def test_a_change_changes_the_key_exactly_where_imports_reach(
    tmp_path_factory: pytest.TempPathFactory, graph: list[set[int]], start: int, changed: int
) -> None:
    root = tree(tmp_path_factory.mktemp("graph"))
    for number, used in enumerate(graph):
        lines = [WAYS[(number + target) % len(WAYS)].format(target) for target in sorted(used)]
        (root / f"pipeline/m{number}.py").write_text("\n".join(lines) + "\n")
    reached, waiting = set(), [start]
    while waiting:
        if (number := waiting.pop()) not in reached:
            reached.add(number)
            waiting += graph[number]
    before = recipe(f"pipeline.m{start}", root=root)
    with (root / f"pipeline/m{changed}.py").open("a") as file:
        file.write("# other\n")
    assert (recipe(f"pipeline.m{start}", root=root) != before) == (changed in reached)
    shutil.rmtree(root)


def test_the_order_of_names_does_not_matter() -> None:
    names = ["pipeline.validate.scores", "pipeline.lanes.gates", "runtime.deployment.classifier"]
    assert recipe(*names) == recipe(*reversed(names)) == recipe(*names, *names)


def test_the_install_path_does_not_matter(copied: Path) -> None:
    for stage, engine in STAGES:
        inputs = recipe_inputs(stage, engine)
        assert recipe(*inputs.modules, data=inputs.data, root=copied) == recipe_of(stage, engine)


@lru_cache(maxsize=1)
def shared_out(root: Path) -> dict[Path, tuple[str, str | None]]:
    """Every counted file, with one of the stages that count it."""
    counting: dict[Path, list[tuple[str, str | None]]] = {}
    for stage in STAGES:
        for path in closure(recipe_inputs(*stage).modules, root).values():
            counting.setdefault(path, []).append(stage)
    return {path: counting[path][number % len(counting[path])] for number, path in enumerate(sorted(counting))}


@pytest.mark.parametrize(("stage", "engine"), STAGES)
def test_a_changed_line_in_any_counted_file_changes_the_key(copied: Path, stage: str, engine: str | None) -> None:
    """Each file once, in one of the stages that count it: a key is made of hundreds, and most stages count most."""
    inputs = recipe_inputs(stage, engine)
    files = [path for path, known in shared_out(copied).items() if known == (stage, engine)]
    files += [path for entry in inputs.data for path in recipes_home.resources(entry, copied)]
    before = recipe(*inputs.modules, data=inputs.data, root=copied)
    for path in files:
        text = path.read_bytes()
        path.write_bytes(text + b"\n")
        changed = recipe(*inputs.modules, data=inputs.data, root=copied)
        path.write_bytes(text)
        assert changed != before, path
    assert recipe(*inputs.modules, data=inputs.data, root=copied) == before


def test_what_is_not_counted_has_a_reason_and_gives_the_counted_no_more_than_is_named() -> None:
    counted = {name: path for stage in STAGES for name, path in closure(recipe_inputs(*stage).modules).items()}
    for skipped, (names, reason) in NOT_COUNTED.items():
        assert recipes_home.source_of(skipped).is_file()
        assert reason
        taken = set()
        for path in counted.values():
            facts = recipes_home._read(path.read_bytes(), "pipeline")
            uses = {use.name for use in facts.at_import | facts.at_call}
            taken |= {use.removeprefix(f"{skipped}.") for use in uses if use.startswith(f"{skipped}.")}
        assert taken <= names, skipped


def test_what_chooses_at_call_chooses_among_the_lanes_engines_alone() -> None:
    (chooser,) = CHOOSE_AT_CALL
    facts = recipes_home._read(recipes_home.source_of(chooser).read_bytes(), chooser)
    left = {use.name for use in facts.at_call - facts.at_import if use.exact}
    within = {name for engine in ENGINES.values() for name in closure([engine])}
    assert set(ENGINES.values()) <= left <= within


def test_no_recipe_counts_commands_the_server_or_the_runner() -> None:
    wide = (
        "cli",
        "run",
        "steps.stage_runner",
        "plan.planner",
        "plan.prepare",
        "publish.push",
        "publish.reports.plan_report",
    )
    wide += ("stages.recipe", "stages.recipes", "stages.stage")
    never = {f"pipeline.{name}" for name in wide} | {
        "runtime.server.process",
        "runtime.server.app",
        "runtime.cli",
        "runtime.deployment.settings.server",
    }
    for name in never:
        assert recipes_home.source_of(name).is_file(), "a name that is no module holds nothing"
    for stage in STAGES:
        assert not never & closure(recipe_inputs(*stage).modules).keys(), stage


def test_a_lane_does_not_count_the_other_lanes_engine() -> None:
    for stage in ("quantize", "build", "reference", "validate"):
        vllm, trt = (closure(recipe_inputs(stage, engine).modules).keys() for engine in ("vllm", "trt"))
        assert ENGINES["trt"] not in vllm
        assert ENGINES["vllm"] not in trt
    assert ENGINES["vllm"] in closure(recipe_inputs("build", "vllm").modules)
    assert "runtime.engines.vllm.worker" in closure(recipe_inputs("build", "vllm").modules)


def test_every_stage_and_lane_has_a_key_of_its_own() -> None:
    keys = [recipe_of(stage, engine) for stage, engine in STAGES if engine != "trt-pytorch"]
    assert len(set(keys)) == len(keys)


def test_an_unknown_stage_or_engine_raises() -> None:
    for stage, engine in (("other", None), ("build", "other"), ("quantize", None), ("reference", None)):
        with pytest.raises(KeyError):
            recipe_of(stage, engine)
