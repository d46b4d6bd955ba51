"""Model sources: a folder, a repository on the hub, or the package itself.

`read_facts` reads what a plan needs (config, names and sizes of files) and downloads no weights. `fetch` brings the
whole model here.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.problem import Problem
from pipeline.progress import Progress
from pipeline.source import licenses, weights
from pipeline.source.licenses import License
from pipeline.source.model_files import (
    CHECKPOINTS,
    Documents,
    Role,
    has_template,
    header_problems,
    index_problems,
    local_tensors,
    merged_tensors,
    missing_files,
    read_documents,
)
from pipeline.source.remote_headers import read_headers
from pipeline.source.source_facts import (
    CONTENT_SUFFIXES,
    EMBEDDED,
    EMBEDDED_CHAT,
    EMBEDDED_TOOL,
    SourceFacts,
)
from runtime.artifact import hub, hub_client
from runtime.artifact.hub import TokenError
from runtime.artifact.repository import Reference
from runtime.engines.trt.folders import is_checkpoint

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)

# ModelOpt says there how it quantized; older releases of it only there.
HF_QUANT_CONFIG = "hf_quant_config.json"
READ_FIRST: tuple[str, ...] = (
    "config.json",
    "tokenizer_config.json",
    HF_QUANT_CONFIG,
    f"{CHECKPOINTS}/config.json",
)
# Of a model in the local cache, what may be there.
CACHED = [f"*{suffix}" for suffix in CONTENT_SUFFIXES] + ["README.md", "LICENSE*"]


def read_facts(ref: str, role: Role) -> SourceFacts:
    """Read a model's facts; what is wrong with it goes to their `problems`, and nothing is raised."""
    if ref == EMBEDDED:
        config = EMBEDDED_CHAT if role == "CHAT_MODEL" else EMBEDDED_TOOL
        return SourceFacts(ref, "embedded", EMBEDDED, config=config, license="apache-2.0", chat_template=True)
    folder = paths.named(role, Path(ref))
    if isinstance(folder, Problem):
        return SourceFacts(ref, "folder", Path(ref).name or ref, problems=(folder,))
    if ref and paths.is_folder(folder):
        return _read_folder(ref, folder.resolve(), role)
    match = HUB_ID.fullmatch(ref)
    if match and not ref.startswith((".", "/", "~")):
        return _read_hub(ref, match["repo"], match["revision"], role)
    problem = Problem(role, "a folder, a hub id (org/name, org/name@revision) or `embedded`", repr(ref), _near(ref))
    return SourceFacts(ref, "folder", folder.name or ref, problems=(problem,))


def _near(ref: str) -> str:
    """Return what to try where a name is nearly the embedded model's."""
    return f"did you mean `{EMBEDDED}`?" if get_close_matches(ref.lower(), [EMBEDDED], cutoff=0.8) else ""


def _read_folder(ref: str, folder: Path, role: Role) -> SourceFacts:
    if unreadable := _unreadable(folder):
        remedy = "let this user read it; in a container, `docker run --user`"
        problem = Problem(role, f"to read {unreadable}", "that this user may not", remedy)
        return SourceFacts(ref, "folder", folder.name, path=folder, problems=(problem,))
    inside = [*folder.iterdir(), *(folder / CHECKPOINTS).glob("*"), *folder.glob("additional_chat_templates/*.jinja")]
    if waiting := [path for path in sorted(inside) if path.exists() and not (path.is_file() or path.is_dir())]:
        # Whoever loads a model opens what has a name it knows, and would wait for a writer that never comes.
        problem = Problem(role, "files", f"a pipe, a socket or a device at {waiting[0]}", "remove it")
        return SourceFacts(ref, "folder", folder.name, path=folder, problems=(problem,))
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(inside) if path.is_file()}
    documents = read_documents(role, str(folder), sizes, READ_FIRST, lambda name: folder / name)
    problems = missing_files(role, str(folder), sizes, documents)
    stated = _license_of(folder / "README.md")
    tensors, damaged = local_tensors(role, folder, sizes, documents) if not problems else ({}, [])
    return SourceFacts(
        ref,
        "folder",
        folder.name,
        path=folder,
        config=_config(documents),
        checkpoint=_checkpoint(documents),
        sizes=sizes,
        weights=documents.weights,
        tensors=tensors,
        license=stated.text,
        license_name=stated.name,
        license_link=stated.link,
        chat_template=has_template(sizes, documents),
        problems=(*problems, *damaged),
    )


def _unreadable(folder: Path) -> Path | None:
    """Return the folder, or the first file in it that is needed, where this user may not read it, as in containers."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return folder
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name.endswith(CONTENT_SUFFIXES))
    return next((path for path in files if not os.access(path, os.R_OK)), None)


def _read_hub(ref: str, repo: str, revision: str | None, role: Role) -> SourceFacts:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    found: str
    try:
        token = hub.revealed(hub.token_of(os.environ))
        info = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True)
        siblings = info.siblings or []
        sizes = {file.rfilename: file.size or 0 for file in siblings}

        def download(name: str) -> Path:
            return Path(hf_hub_download(repo, name, revision=info.sha, token=token))

        documents = read_documents(role, repo, sizes, READ_FIRST, download)
        page = f"https://huggingface.co/{repo}/blob/{info.sha}"
        matter = {name: info.card_data.get(name) for name in licenses.FIELDS} if info.card_data else {}
        stated = licenses.read(matter, page)
        facts = SourceFacts(
            ref,
            "hub",
            repo,
            revision=info.sha,
            config=_config(documents),
            checkpoint=_checkpoint(documents),
            sizes=sizes,
            weights=documents.weights,
            hashes={file.rfilename: file.lfs.sha256 for file in siblings if file.lfs},
            license=stated.text,
            license_name=stated.name,
            license_link=stated.link,
            chat_template=has_template(sizes, documents),
            problems=tuple(missing_files(role, repo, sizes, documents)),
        )
        return facts if facts.problems else _with_headers(facts, role, documents)
    except TokenError as error:
        return SourceFacts(ref, "hub", repo, problems=(Problem(error.variables, error.expected, error.found),))
    except HFValidationError:
        found, remedy = "a name that the hub does not allow", "check it, or name a folder"
    except GatedRepoError:
        found, remedy = "a gated one", f"accept its terms at https://huggingface.co/{repo} and set HF_TOKEN"
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        # The hub answers 401 for what does not exist, so that strangers cannot probe for private repositories.
        found = "none that this token may see" if status in {401, 403, 404} else f"status {status} from the hub"
        remedy = "check its name and revision, and HF_TOKEN when it is private"
    except hub_client.failures() as error:
        try:
            cached = snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=CACHED)
        except hub_client.failures():
            reason = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else "the hub is out of reach"
            found = f"no copy in the local cache, and {reason}"
            remedy = "name a folder or `embedded`, or go online"
        else:
            folder = Path(cached)
            return replace(_read_folder(ref, folder, role), kind="hub", name=repo, revision=folder.name)
    problem = Problem(role, f"the model {ref} on the hub", found, remedy)
    return SourceFacts(ref, "hub", repo, problems=(problem,))


def _with_headers(facts: SourceFacts, role: Role, documents: Documents) -> SourceFacts:
    """Return the facts with what the headers of the weights say, which are read by range."""
    reference = Reference(facts.name, facts.revision or "main")
    try:
        found = read_headers(reference, reference.revision, facts.weight_files)
    except hub_client.failures() as error:
        return replace(facts, unread=hub.reason(error))
    headers = dict(zip(facts.weight_files, found, strict=True))
    tensors = merged_tensors(found)
    problems = header_problems(role, facts.name, facts.sizes, headers)
    problems = problems or index_problems(role, facts.name, documents, tensors)
    return replace(facts, tensors=tensors, problems=tuple(problems))


def _config(documents: Documents) -> Mapping[str, Any]:
    """Return `config.json`, with ModelOpt's word on the quantization where it is silent."""
    config = documents.get("config.json")
    stated = documents.get(HF_QUANT_CONFIG).get("quantization")
    if isinstance(stated, dict) and not config.get("quantization_config"):
        config = {**config, "quantization_config": {"quant_method": "modelopt", **stated}}
    return config


def _checkpoint(documents: Documents) -> Mapping[str, Any]:
    for name in ("config.json", f"{CHECKPOINTS}/config.json"):
        if is_checkpoint(document := documents.get(name)):
            return document
    return {}


def checkpoint_in(folder: Path) -> Path:
    """Return where a model's TensorRT-LLM checkpoint lies: in its folder of checkpoints, else in the folder itself."""
    inside = folder / CHECKPOINTS
    return inside if (inside / "config.json").is_file() else folder


def fetch(facts: SourceFacts, progress: Progress) -> Path:
    """Return the folder of a model, downloaded where it lies on the hub; an interrupted download resumes.

    Raises:
        ArtifactError: the hub sent other bytes than it lists.
        HfHubHTTPError, or what `hub_client.failures` lists: the hub refused, is out of reach, or the disk is full.
    """
    if facts.path is not None:
        return facts.path
    from huggingface_hub import snapshot_download

    if facts.revision is None:
        raise ValueError(f"{facts.ref} was not found on the hub, so there is nothing to fetch")
    progress.step(f"downloading {facts.name}@{facts.revision} ({facts.weight_bytes / 2**30:.1f} GiB)")
    # Names, which are no patterns; the client takes them for such.
    patterns = [glob.escape(name) for name in facts.wanted]
    weights.download(Reference(facts.name, facts.revision), facts.sizes, facts.hashes, patterns, progress)
    token = hub.revealed(hub.token_of(os.environ))

    def rest() -> str:
        return snapshot_download(facts.name, revision=facts.revision, allow_patterns=patterns, token=token)

    folder = Path(hub.with_retries(rest, progress.step))
    named = HUB_ID.fullmatch(facts.ref)
    weights.write_ref(Reference(facts.name, (named and named["revision"]) or "main"), facts.revision)
    return folder


def _license_of(card: Path) -> License:
    """Return the licence that a model card's front matter names."""
    if not card.is_file():
        return License()
    from huggingface_hub import metadata_load
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        return licenses.read(metadata_load(card) or {})
    except (OSError, ValueError, AttributeError, RecursionError, YAMLError):
        return License()  # front matter that is no YAML: a licence we cannot read is one we do not know
