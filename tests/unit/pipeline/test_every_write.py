"""Nothing is lost: each command is killed, finds the disk full, and finds it broken, at each of its writes.

Whatever happens, what lies beside the artifact is untouched, the last finished artifact is there, and the next run
finishes. The heavy parts are stand-ins; every write of our own code is the real one. By default a part of the points
is tried; `make test-writes` tries all of them, and prints the list; `YAP_EVERY_WRITE=20` tries so many of each.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.stages import staging
from pipeline.stages.install import recover
from runtime import artifact
from runtime.artifact import BuildMetadata, hashes, signature
from tests.harness.faults.injector import Mode
from tests.harness.faults.process import Commands, Outcome, small_disks
from tests.hub import Account, Hub
from tests.hub.client import key_pair

ALL = os.environ.get("YAP_EVERY_WRITE") == "all"
# Points of each scenario and mode, of up to two hundred.
SAMPLE = 2 if ALL else int(os.environ.get("YAP_EVERY_WRITE", "2"))
EXAMPLES = 60 if ALL else 3

TOKEN, REPO = "hf_writer", "acme/demo"

RUN_AWQ = "run --cpu awq embedded embedded --out {out}"
RUN_INT8 = "run --cpu int8 embedded embedded --out {out}"
BUILD_GPTQ = "build --cpu gptq embedded embedded --out {out}"
QUANTIZE_AWQ = "quantize --cpu awq embedded --out {out}"
QUANTIZE_GPTQ = "quantize --cpu gptq embedded --out {out}"
VALIDATE = "validate {out}"
SIGN = "sign {out} --sign-key {key}"
PUSH = "push {out} --sign-key {key}"


@dataclass(frozen=True)
class Scenario:
    """A command, what was done before it, and how.

    Attributes:
        before: commands that make what is there.
        command: the one that fails.
        out: what its place is called; `current` is a link.
        exchange: whether the file system exchanges two folders in one step.
    """

    before: tuple[str, ...]
    command: str
    out: str = "demo"
    exchange: bool = True


SCENARIOS = {
    "run": Scenario((), RUN_AWQ),
    "run over": Scenario((RUN_AWQ, SIGN), RUN_INT8),
    "run over, no exchange": Scenario((RUN_AWQ,), RUN_INT8, exchange=False),
    "run through a link": Scenario((RUN_AWQ,), RUN_INT8, out="current"),
    "run again": Scenario((RUN_AWQ,), RUN_AWQ),
    "build over": Scenario((RUN_AWQ,), BUILD_GPTQ),
    "quantize over": Scenario((QUANTIZE_AWQ,), QUANTIZE_GPTQ),
    "validate": Scenario((BUILD_GPTQ,), VALIDATE),
    "sign": Scenario((RUN_AWQ,), SIGN),
    "sign again": Scenario((RUN_AWQ, SIGN), SIGN),
    "push": Scenario((RUN_AWQ,), PUSH),
}
MODES: tuple[Mode, ...] = ("kill", "full", "broken")

# What is not ours, whatever it is called.
KEY = "0123456789abcdef" * 2
MINE = {
    "artifacts/notes.txt": "irreplaceable",
    "artifacts/.yap-partial-thesis12/thesis.txt": "irreplaceable",
    "artifacts/.demo.partial/thesis.txt": "irreplaceable",
    "artifacts/other/.git/HEAD": "ref: refs/heads/main",
    f"cache/build/{KEY}.partial-mine1234/film.mkv": "irreplaceable",
    "cache/downloads/film.partial-1/film.mkv": "irreplaceable",
    "cache/notes.txt": "irreplaceable",
}


@dataclass
class Workplace:
    """A folder with a cache, artifacts, and what belongs to somebody."""

    commands: Commands
    home: Path
    key: tuple[Path, Path]
    environment: Mapping[str, str]

    @property
    def root(self) -> Path:
        return self.home / "w"

    @property
    def out(self) -> Path:
        return self.root / "artifacts" / "demo"

    def prepare(self) -> None:
        for name, text in MINE.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (self.root / "artifacts" / "current").symlink_to("demo")

    def run(self, scenario: Scenario, command: str = "", mode: Mode = "count", at: int = 0) -> Outcome:
        out = self.root / "artifacts" / scenario.out
        words = [word.format(out=out, key=self.key[0]) for word in (command or scenario.command).split()]
        environment = {
            "CALLS": str(self.home / "calls"),
            "AWQ_CACHE_DIR": str(self.root / "cache"),
            "TMPDIR": str(self.home),
            "HOME": str(self.home),
            **self.environment,
        }
        return self.commands.run(words, self.root, environment, mode, at, exchange=scenario.exchange)

    def copy(self, home: Path) -> Workplace:
        shutil.copytree(self.root, home / "w", symlinks=True)
        return Workplace(self.commands, home, self.key, self.environment)

    def check_mine(self) -> None:
        assert {name: (self.root / name).read_text() for name in MINE} == MINE
        assert (self.root / "artifacts" / "current").is_symlink()

    def leftovers(self) -> list[str]:
        found = [path for path in self.root.rglob("*") if re.search(r"partial|\.old\b", path.name)]
        mine = [self.root / name for name in MINE]
        return [path.name for path in found if not any(path in (own, *own.parents) for own in mine)]

    def content(self) -> BuildMetadata | dict[str, bytes] | None:
        """What lies at the place, whole: an artifact's metadata, or the files of a quantized model."""
        if not self.out.exists():
            return None
        if not (self.out / "build_metadata.json").exists():
            return {path.name: path.read_bytes() for path in self.out.iterdir()}
        metadata = artifact.read(self.out)
        hashes.verify_files(self.out, metadata)
        if (self.out / signature.SIGNATURE_NAME).exists():
            signature.verify(self.out, metadata, self.key[1])
        return metadata


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return key_pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub(accounts={TOKEN: Account("acme")}) as running:
        yield running


@pytest.fixture(scope="module")
def commands(hub: Hub) -> Iterator[Commands]:
    with Commands({**hub.environment(TOKEN), "HF_HUB_DISABLE_XET": "1"}) as running:
        yield running


@pytest.fixture(scope="module")
def prepared(
    commands: Commands, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[tuple[str, ...], Workplace]:
    """A workplace for each thing that was done before."""

    @cache
    def make(before: tuple[str, ...]) -> Workplace:
        home = tmp_path_factory.mktemp("prepared")
        if not before:
            place = Workplace(commands, home, keys, {"HF_PUSH_REPO_ID": REPO})
            place.prepare()
            return place
        place = make(before[:-1]).copy(home)
        done = place.run(Scenario((), before[-1]))
        assert done.code == 0, done.said
        return place

    return {scenario.before: make(scenario.before) for scenario in SCENARIOS.values()}


def points(name: str, mode: Mode, calls: tuple[tuple[str, str], ...]) -> list[int]:
    """The numbers of the calls that are tried, from 1."""
    numbers = list(range(1, len(calls) + 1))
    wanted = SAMPLE if mode == "kill" else max(1, SAMPLE // 2)
    if ALL or len(numbers) <= wanted:
        return numbers
    # Those at the artifact's own place are where most can be lost.
    near = [
        number for number, (kind, path) in enumerate(calls, 1) if kind in {"exchange", "rename"} and "cache" not in path
    ]
    chosen = set(random.Random(f"{name} {mode}").sample(numbers, wanted)) | set(near[-1:] if mode == "kill" else ())
    return sorted(chosen)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_at_any_write(
    name: str, mode: Mode, prepared: Mapping[tuple[str, ...], Workplace], tmp_path: Path
) -> None:
    scenario = SCENARIOS[name]
    begin = prepared[scenario.before]
    before = begin.content()
    (tmp_path / "whole").mkdir()
    whole = begin.copy(tmp_path / "whole")
    done = whole.run(scenario)
    assert done.code == 0, done.said
    after = whole.content()
    assert after is not None
    tried = points(name, mode, done.calls)
    print(f"\n{name}, {mode}: {len(tried)} of {len(done.calls)} points")
    for number in tried:
        kind, path = done.calls[number - 1]
        print(f"  {number:4} {kind:8} {re.sub(r'-[a-z0-9_]{8}(?=/|$)', '-…', path)}")
        with TemporaryDirectory(dir=tmp_path) as folder:
            place = begin.copy(Path(folder))
            failed = place.run(scenario, mode=mode, at=number)
            check_after_fault(place, failed, mode, [before, after], scenario)
            again = place.run(scenario)
            assert again.code == 0, again.said
            place.check_mine()
            assert same(place.content(), after)
            assert place.leftovers() == []


def check_after_fault(
    place: Workplace,
    failed: Outcome,
    mode: Mode,
    allowed: list[BuildMetadata | dict[str, bytes] | None],
    scenario: Scenario,
) -> None:
    place.check_mine()
    assert "Traceback" not in failed.said, failed.said
    if mode == "kill":
        assert failed.code == -9
        # The next run finds no room for anything: what was finished is there all the same.
        without_room = place.run(scenario, mode="full", at=1)
        assert without_room.code in {0, 1, 64}, without_room.said
        assert "Traceback" not in without_room.said, without_room.said
        place.check_mine()
    else:
        assert failed.code in {0, 1}, failed.said
        assert len(failed.errors) == failed.code, failed.said
    if mode == "full":
        assert place.leftovers() == []
    assert any(same(place.content(), content) for content in allowed)


def same(one: object, other: object) -> bool:
    """Whether two contents say the same; when an artifact was made does not matter."""
    if not isinstance(one, BuildMetadata) or not isinstance(other, BuildMetadata):
        return one == other
    never = {"created_at": "", "stages": ()}
    return one.model_copy(update=never) == other.model_copy(update=never)


FAULTS = st.tuples(
    st.sampled_from([RUN_AWQ, RUN_INT8, BUILD_GPTQ, VALIDATE, SIGN]),
    st.sampled_from(MODES),
    st.integers(1, 220),
    st.booleans(),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=not ALL)
@given(faults=st.lists(FAULTS, min_size=2, max_size=5))
def test_nothing_is_lost_by_any_faults_in_a_row(
    faults: list[tuple[str, Mode, int, bool]], prepared: Mapping[tuple[str, ...], Workplace]
) -> None:
    """An artifact, once finished, is there after whatever happens to whatever command."""
    with TemporaryDirectory() as folder:
        place = prepared[(RUN_AWQ,)].copy(Path(folder))
        for command, mode, at, exchange in faults:
            failed = place.run(Scenario((), command, exchange=exchange), mode=mode, at=at)
            assert "Traceback" not in failed.said, failed.said
            place.check_mine()
            recover(place.out)
            assert isinstance(place.content(), BuildMetadata)
        done = place.run(Scenario((), RUN_INT8))
        assert done.code == 0, done.said
        place.check_mine()
        made = place.content()
        assert isinstance(made, BuildMetadata)
        assert made.validation
        assert made.validation.passed
        assert place.leftovers() == []


def test_the_points_are_those_of_the_real_code(prepared: Mapping[tuple[str, ...], Workplace], tmp_path: Path) -> None:
    """That calls are seen at all, of every kind, and where most could be lost."""
    begin = prepared[SCENARIOS["run over"].before]
    calls = begin.copy(tmp_path).run(SCENARIOS["run over"]).calls
    assert {"create", "write", "fsync", "mkdir", "rename", "unlink", "rmdir", "exchange"} <= {kind for kind, _ in calls}
    assert [path for kind, path in calls if kind == "exchange"] == ["artifacts/demo"]
    assert any(path.endswith(staging.MARKER) for _, path in calls)
    assert any(path.startswith("cache/") for _, path in calls)


def fill(root: Path, free: int) -> None:
    """Leave so many bytes of a disk."""
    (root / "filler").unlink(missing_ok=True)
    room = os.statvfs(root)
    with (root / "filler").open("wb") as file:
        file.write(bytes(max(0, room.f_bavail * room.f_frsize - free)))


@pytest.mark.skipif(not small_disks(), reason="the kernel lets no user mount a disk of his own")
@pytest.mark.parametrize("command", [RUN_INT8, VALIDATE, *((BUILD_GPTQ, SIGN) if ALL else ())])
def test_nothing_is_lost_on_a_disk_that_is_really_full(
    command: str, keys: tuple[Path, Path], prepared: Mapping[tuple[str, ...], Workplace], tmp_path: Path
) -> None:
    """What the wrapped calls above cannot show: what libraries do that write past Python."""
    (tmp_path / "disk").mkdir()
    with Commands({}, disk=(tmp_path / "disk", "1m")) as commands:
        commands.run(["--help"], tmp_path, {"CALLS": str(tmp_path / "calls")})
        home = commands.seen(tmp_path / "disk")
        begin, step = prepared[(RUN_AWQ,)], 4096
        whole = begin.copy(tmp_path)
        scenario = Scenario((), command)
        done = whole.run(scenario)
        assert done.code == 0, done.said
        before, after = begin.content(), whole.content()
        failed = 0
        for pages in range(0, 48) if ALL else (0, 20):
            shutil.rmtree(home / "w", ignore_errors=True)
            (home / "filler").unlink(missing_ok=True)
            shutil.copytree(begin.root, home / "w", symlinks=True)
            place = Workplace(commands, home, keys, {"TMPDIR": str(tmp_path), "CALLS": str(tmp_path / "calls")})
            fill(home, pages * step)
            outcome = place.run(scenario)
            failed += outcome.code
            check_after_fault(place, outcome, "full", [before, after], scenario)
            (home / "filler").unlink()
            again = place.run(scenario)
            assert again.code == 0, again.said
            assert same(place.content(), after)
            assert place.leftovers() == []
        assert failed > 0
