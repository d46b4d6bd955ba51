"""Signs an artifact with an elliptic-curve key: `model.sig`, an OpenSSF model signature.

The signature covers `build_metadata.json` and every file that it lists. The card, which people edit on the hub, and
what hub clients leave behind are ignored, as for the digest. `runtime/artifact/signature.py` verifies it; so does the
library's own command, `model_signing verify key ARTIFACT --signature ARTIFACT/model.sig --public_key KEY.pub`.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from pipeline.problem import Problem
from pipeline.stages.disk import fsync
from pipeline.stages.install import held
from runtime import artifact
from runtime.artifact import ArtifactError, BuildMetadata, hashes, signature
from runtime.artifact.files.opening import opened, read_named
from runtime.artifact.files.paths import BOOKKEEPING_FOLDERS, UNLISTED_NAMES

CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})
MAKE_ONE = "make one with `openssl ecparam -name prime256v1 -genkey -noout -out signing.pem`"


def key_problem(key: Path) -> Problem | None:
    """Return why a private key cannot sign; none when it can."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if find_spec("model_signing") is None:
        return Problem("--sign-key", "model-signing to be installed", "none", "install the extra `sign`")
    expected = "an elliptic-curve private key (PEM, P-256, P-384 or P-521, without a password)"
    try:
        private = load_pem_private_key(read_named(key), None)
    except OSError as error:
        return Problem("--sign-key", expected, f"{key} ({error.strerror})", MAKE_ONE)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return Problem("--sign-key", expected, f"something else in {key}", MAKE_ONE)
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name not in CURVES:
        return Problem("--sign-key", expected, f"another kind of key in {key}", MAKE_ONE)
    return None


def sign(folder: Path, key: Path) -> BuildMetadata:
    """Write `model.sig` over an artifact, after its files were verified; nothing else in the folder changes.

    Raises:
        ArtifactError: the artifact cannot be read, or a file changed.
        StageError: the signature cannot be written; the one that was there is there.
    """
    with held(folder, "sign"):
        return _sign(folder, key)


def _sign(folder: Path, key: Path) -> BuildMetadata:
    from model_signing import hashing, signing

    metadata = artifact.read(folder)
    hashes.verify_files(folder, metadata)
    _require_files(folder)
    # Those that may come later are named too, so that the library's own check passes when they are there.
    ignored = (UNLISTED_NAMES | BOOKKEEPING_FOLDERS) - {artifact.METADATA_NAME}
    config = hashing.Config().set_ignored_paths(paths=sorted(ignored))
    config.set_allow_symlinks(True)
    partial = folder / f"{signature.SIGNATURE_NAME}.partial"
    partial.unlink(missing_ok=True)  # whatever lies there: a link would be written through
    try:
        signing.Config().set_hashing_config(config).use_elliptic_key_signer(private_key=key).sign(folder, partial)
        fsync(partial)
        partial.replace(folder / signature.SIGNATURE_NAME)
    finally:
        partial.unlink(missing_ok=True)
    signature.check_subject(folder, metadata)
    return metadata


def _require_files(folder: Path) -> None:
    """Refuse what is no file among those that no list names; the library looks at them though it ignores them."""
    for path in (folder / name for name in sorted(UNLISTED_NAMES)):
        if not os.path.lexists(path):
            continue
        try:
            with opened(path):
                pass
        except FileNotFoundError:
            raise ArtifactError(f"{path}: expected a file, found a link to nothing; remove it") from None
