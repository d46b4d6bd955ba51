"""Signing, and what a runtime that holds the public key refuses."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.publish.sign import key_problem, sign
from pipeline.source.utterance_file import UtterancesError, read_utterances
from runtime import artifact
from runtime.artifact import ArtifactError, hashes, signature, verify
from runtime.artifact.files.opening import MAX_SECRET_BYTES
from runtime.artifact.files.paths import UNLISTED_NAMES
from runtime.artifact.hub import TokenError, token_of
from runtime.cli import app
from tests.hub.artifacts import CPU, cpu_artifact
from tests.hub.client import key_pair


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return key_pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Path:
    folder = cpu_artifact(tmp_path_factory.mktemp("signed") / "artifact", weights=b"weights" * 100, tool=True)
    sign(folder, keys[0])
    return folder


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def test_a_signed_artifact_is_served_and_nothing_else_changed(signed: Path, keys: tuple[Path, Path]) -> None:
    metadata = verify.check_artifact(signed, CPU, public_key=keys[1])
    assert {path.name for path in signed.iterdir()} == {
        *("model.safetensors", "config.json", "tokenizer.json", "tool", "build_metadata.json", "model.sig")
    }
    assert metadata == artifact.read(signed)


def test_the_standard_tool_verifies_the_signature_too(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    from model_signing import verifying

    folder = copy(signed, tmp_path)
    (folder / "README.md").write_text("a card that was written on the hub")
    verifying.Config().use_elliptic_key_verifier(public_key=keys[1]).verify(folder, folder / "model.sig")


def test_an_unsigned_artifact_is_refused_when_a_key_is_set(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    assert verify.check_artifact(folder, CPU).validation
    with pytest.raises(ArtifactError, match=r"expected a signed artifact, found no model\.sig; sign it with"):
        verify.check_artifact(folder, CPU, public_key=keys[1])


def test_the_command_asks_for_the_signature_when_it_is_given_a_key(
    signed: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    for folder, status in ((signed, 0), (cpu_artifact(tmp_path / "unsigned"), 65)):
        checked = CliRunner().invoke(app, ["check", str(folder), "--public-key", str(keys[1])])
        assert checked.exit_code == status, checked.output


def test_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    _, stranger = key_pair(tmp_path, "stranger")
    with pytest.raises(ArtifactError, match=r"expected a signature made with the key of .*stranger\.pub"):
        verify.check_artifact(signed, CPU, public_key=stranger)


def test_metadata_that_was_edited_and_sealed_again_is_refused(
    signed: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    folder = copy(signed, tmp_path)
    metadata = artifact.read(folder)
    assert metadata.chat
    limits = metadata.chat.limits.model_copy(update={"max_batch_size": 4096})
    metadata.model_copy(update={"chat": metadata.chat.model_copy(update={"limits": limits})}).write(folder)
    assert verify.check_artifact(folder, CPU).chat  # the seal is right: only the signature knows
    with pytest.raises(ArtifactError, match=r"found that build_metadata\.json differs; sign it again"):
        verify.check_artifact(folder, CPU, public_key=keys[1])


def test_files_that_were_exchanged_with_their_hashes_are_refused(
    signed: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    folder = copy(signed, tmp_path)
    (folder / "model.safetensors").write_bytes(b"other weights")
    (folder / "extra.json").write_text("{}")
    files = hashes.hash_folder(folder)
    digest, before = hashes.digest_of(files), artifact.read(folder)
    assert before.validation
    proof = before.validation.model_copy(update={"digest": digest})
    before.model_copy(update={"files": files, "digest": digest, "validation": proof}).write(folder)
    assert verify.check_artifact(folder, CPU).chat
    with pytest.raises(ArtifactError, match="expected what was signed, found that"):
        verify.check_artifact(folder, CPU, public_key=keys[1])


def test_the_signature_of_another_artifact_is_refused(signed: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = cpu_artifact(tmp_path / "artifact", weights=b"mine")
    shutil.copyfile(signed / "model.sig", folder / "model.sig")
    with pytest.raises(ArtifactError, match="expected what was signed"):
        verify.check_artifact(folder, CPU, public_key=keys[1])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_altered_signature_passes_and_each_is_refused_in_one_line(
    data: st.DataObject, signed: Path, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("altered")
    for path in ("build_metadata.json", "model.sig"):
        shutil.copyfile(signed / path, folder / path)
    metadata, path = artifact.read(folder), folder / "model.sig"
    bundle = json.loads(path.read_bytes())
    envelope = bundle["dsseEnvelope"]
    kind = data.draw(st.sampled_from(["bytes", "payload", "signature", "resource", "drop", "shape"]))
    if kind == "bytes":
        content = bytearray(path.read_bytes())
        cut = data.draw(st.integers(0, len(content) - 2))
        path.write_bytes(bytes(content[:cut]))
    else:
        if kind in {"payload", "signature"}:
            holder, name = (envelope, "payload") if kind == "payload" else (envelope["signatures"][0], "sig")
            raw = bytearray(base64.b64decode(holder[name]))
            at = data.draw(st.integers(0, len(raw) - 1))
            raw[at] ^= data.draw(st.integers(1, 255))
            holder[name] = base64.b64encode(bytes(raw)).decode()
        elif kind == "resource":
            statement = json.loads(base64.b64decode(envelope["payload"]))
            statement["predicate"]["resources"].pop()
            envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        elif kind == "drop":
            del envelope[data.draw(st.sampled_from(sorted(envelope)))]
        else:
            bundle["dsseEnvelope"] = data.draw(st.sampled_from([None, [], "x", 1, {}, {"payload": None}]))
        path.write_text(json.dumps(bundle))
    with pytest.raises(ArtifactError) as refused:
        signature.verify(folder, metadata, keys[1])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("curve", ["SECP384R1", "SECP521R1"])
def test_larger_curves_sign_and_verify(curve: str, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(getattr(ec, curve)())
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "k").write_bytes(private.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, none))
    public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "k.pub").write_bytes(public)
    folder = cpu_artifact(tmp_path / "artifact", weights=b"w")
    metadata = sign(folder, tmp_path / "k")
    signature.verify(folder, metadata, tmp_path / "k.pub")


def test_keys_that_cannot_sign_are_named(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    other = tmp_path / "rsa.pem"
    other.write_bytes(
        rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    assert key_problem(keys[0]) is None
    assert "another kind of key" in str(key_problem(other))
    assert "something else" in str(key_problem(keys[1]))
    assert "No such file" in str(key_problem(tmp_path / "missing"))


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_a_public_key_that_is_none_is_named(signed: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "k.pub").write_bytes(content)
    with pytest.raises(ArtifactError, match="ARTIFACT_PUBLIC_KEY_FILE: expected a PEM file"):
        verify.check_artifact(signed, CPU, public_key=tmp_path / "k.pub")


def test_a_damaged_artifact_is_not_signed(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json: expected"):
        sign(folder, keys[0])
    assert not (folder / "model.sig").exists()


def test_files_that_people_name_are_not_waited_for_and_have_an_end(tmp_path: Path, signed: Path) -> None:
    pipe, device, large = tmp_path / "pipe", Path("/dev/zero"), tmp_path / "large"
    os.mkfifo(pipe)
    large.write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    for path, told in ((pipe, "a pipe, not a file"), (device, "a device, not a file"), (large, "more than")):
        assert told in str(key_problem(path))
        with pytest.raises(ArtifactError, match=told):
            verify.check_proven(signed, path)
        with pytest.raises(TokenError, match=told):
            token_of({"HF_TOKEN_FILE": str(path)})
        if path != large:
            with pytest.raises(UtterancesError, match=told):
                read_utterances(path)


@pytest.mark.parametrize("name", sorted(UNLISTED_NAMES - {artifact.METADATA_NAME}))
@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "folder", "link to a folder"])
def test_what_is_no_file_beside_the_listed_ones_is_told_in_one_line_and_stays(
    tmp_path: Path, keys: tuple[Path, Path], name: str, kind: str
) -> None:
    folder = cpu_artifact(tmp_path / "artifact")
    strange = folder / name
    if kind == "pipe":
        os.mkfifo(strange)
    elif kind == "folder":
        strange.mkdir()
        (strange / "thesis").write_text("irreplaceable")
    else:
        strange.symlink_to("/nowhere" if kind == "link to nothing" else tmp_path)
    with pytest.raises(ArtifactError) as caught:
        sign(folder, keys[0])
    assert name in str(caught.value)
    assert os.path.lexists(strange)
