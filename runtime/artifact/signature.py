"""Verifying an artifact's signature: `model.sig`, an OpenSSF model signature made with an elliptic-curve key.

The format is model-signing's v1.0: a Sigstore bundle whose DSSE envelope carries an in-toto statement with the SHA-256
of every file. `yap-pipeline sign` makes it with that library. Verifying takes only the public key's arithmetic, so the
runtime does it here on `cryptography` instead of carrying the library's twelve packages; files are not hashed again,
because the artifact's own list, which the signature must equal, has been compared with the disk already.

What must be signed: every listed file, and `build_metadata.json`, which holds the limits and the proof.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from pathlib import Path
from typing import Any

from runtime.artifact import METADATA_NAME, ArtifactError, BuildMetadata
from runtime.artifact import SIGNATURE_NAME as SIGNATURE_NAME
from runtime.artifact.files.opening import read_document, read_named
from runtime.artifact.metadata import parse, same

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
# A signature lists a hash for each file; the largest artifacts have some hundred files.
MAX_SIGNATURE_BYTES = 16 << 20


def verify(folder: Path, metadata: BuildMetadata, public_key: Path) -> None:
    """Refuse an artifact that is unsigned, was signed with another key, or is not what was signed.

    Args:
        metadata: read from the folder, its file list compared with the disk.
        public_key: PEM file with a public key on P-256, P-384 or P-521.

    Raises:
        ArtifactError: one line.
    """
    path = folder / SIGNATURE_NAME
    key = _public_key(public_key)
    payload, signature = _envelope(path)
    _verify_bytes(key, payload, signature, path, public_key)
    _compare(folder, metadata, _resources(payload, path))


def check_subject(folder: Path, metadata: BuildMetadata) -> None:
    """Refuse a signature that is for something else than what is there, whoever made it.

    Raises:
        ArtifactError: one line.
    """
    path = folder / SIGNATURE_NAME
    _compare(folder, metadata, _resources(_envelope(path)[0], path))


def pae(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed.

    Source: https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md
    """
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _content(path: Path) -> bytes:
    try:
        return read_document(path)
    except OSError as error:
        raise ArtifactError(f"{path}: it cannot be read any more: {error.strerror}; try again") from error


def _public_key(path: Path) -> Any:  # noqa: ANN401 - cryptography is imported where it is used
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    expected = f"ARTIFACT_PUBLIC_KEY_FILE: expected a PEM file with an elliptic-curve public key, found {path}"
    try:
        key = load_pem_public_key(read_named(path))
    except OSError as error:
        raise ArtifactError(f"{expected} ({error.strerror})") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ArtifactError(f"{expected}, which holds no public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in {"secp256r1", "secp384r1", "secp521r1"}:
        raise ArtifactError(f"{expected}, which holds another kind of key; use P-256, P-384 or P-521")
    return key


def _envelope(path: Path) -> tuple[bytes, bytes]:
    """The payload and its signature."""
    remedy = "sign it with `yap-pipeline sign`, or fetch it again"
    try:
        bundle = json.loads(read_document(path, MAX_SIGNATURE_BYTES))
    except FileNotFoundError:
        raise ArtifactError(f"{path.parent}: expected a signed artifact, found no {path.name}; {remedy}") from None
    except (OSError, ValueError, RecursionError):
        raise ArtifactError(f"{path}: expected a Sigstore bundle, found no JSON; {remedy}") from None
    try:
        envelope = bundle["dsseEnvelope"]
        kind, signatures = envelope["payloadType"], envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(signatures[0]["sig"], validate=True)
        count = len(signatures)
    except (KeyError, IndexError, TypeError, binascii.Error, ValueError):
        raise ArtifactError(f"{path}: expected a Sigstore bundle with a DSSE envelope, found none; {remedy}") from None
    if kind != PAYLOAD_TYPE or count != 1:
        raise ArtifactError(f"{path}: expected one signature over {PAYLOAD_TYPE}, found {count} over {kind}; {remedy}")
    return payload, signature


def _verify_bytes(key: Any, payload: bytes, signature: bytes, path: Path, key_file: Path) -> None:  # noqa: ANN401
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    # Sigstore's specification binds the hash to the curve.
    hashed = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[key.curve.key_size]
    try:
        key.verify(signature, pae(payload), ec.ECDSA(hashed))
    except InvalidSignature:
        raise ArtifactError(
            f"{path}: expected a signature made with the key of {key_file}, found another or an altered one; "
            "use the signer's public key, or fetch the artifact again"
        ) from None


def _resources(payload: bytes, path: Path) -> dict[str, str]:
    """SHA-256 by path, of all that was signed."""
    try:
        statement = json.loads(payload)
        predicate = statement["predicate"]
        kinds = (statement["_type"], statement["predicateType"], predicate["serialization"]["method"])
        resources = [(entry["name"], entry["algorithm"], entry["digest"]) for entry in predicate["resources"]]
        entries = [entry for entry in resources if all(isinstance(field, str) for field in entry)]
    except (KeyError, TypeError, ValueError, RecursionError):
        kinds, entries, resources = ("", "", ""), [], []
    found = {name: digest for name, algorithm, digest in entries if algorithm == "sha256"}
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE, "files") or not entries or len(found) != len(resources):
        raise ArtifactError(
            f"{path}: expected a signed list of files with SHA-256 ({PREDICATE_TYPE}), found another; "
            "sign it with `yap-pipeline sign`"
        )
    return found


def _compare(folder: Path, metadata: BuildMetadata, signed: dict[str, str]) -> None:
    present = {entry.path: entry.sha256 for entry in metadata.files}
    content = _content(folder / METADATA_NAME)
    if not same(parse(content, folder / METADATA_NAME), metadata):
        raise ArtifactError(f"{folder / METADATA_NAME}: it changed while it was checked; try again")
    present[METADATA_NAME] = hashlib.sha256(content).hexdigest()
    for path in sorted(present.keys() | signed.keys()):
        if present.get(path) != signed.get(path):
            what = "is not signed" if path not in signed else "is missing" if path not in present else "differs"
            raise ArtifactError(
                f"{folder}: expected what was signed, found that {path} {what}; "
                "sign it again with `yap-pipeline sign`, or fetch it again"
            )
