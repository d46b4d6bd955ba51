"""Model sources: a folder, a repository on the hub, or the package itself.

`read_facts` reads what a plan needs (config, names and sizes of files) and downloads no weights. `fetch` brings the
whole model here. `content_hash` names its bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline import paths
from pipeline.problem import Problem
from pipeline.progress import Progress
from pipeline.source import weights
from pipeline.source.model_files import Role, damaged_weights, has_template, json_object, missing_files
from runtime.artifact import hub, hub_client
from runtime.artifact.hashes import sha256_of
from runtime.artifact.hub import TokenError
from runtime.artifact.repository import Reference
from runtime.engines.trt.folders import is_checkpoint

Kind = Literal["embedded", "folder", "hub"]

EMBEDDED = "embedded"
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)

# What decides a model's answers; cards and pictures do not.
CONTENT_SUFFIXES = (".safetensors", ".engine", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
FETCHED = [f"*{suffix}" for suffix in CONTENT_SUFFIXES] + ["README.md", "LICENSE*"]
# ModelOpt says there how it quantized; older releases of it only there.
HF_QUANT_CONFIG = "hf_quant_config.json"
# Where a repository holds a TensorRT-LLM checkpoint beside a tokenizer and the float model's config.
CHECKPOINTS = "trt-llm/checkpoints"
READ_FIRST: tuple[str, ...] = (
    "config.json",
    "tokenizer_config.json",
    HF_QUANT_CONFIG,
    f"{CHECKPOINTS}/config.json",
)

# The embedded models' own configs, so that a plan can be made before they are exported; tests hold them equal.
EMBEDDED_CHAT: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
EMBEDDED_TOOL: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "trained_window": 48,
    "id2label": {"0": "no", "1": "take_screenshot"},
    "label2id": {"no": 0, "take_screenshot": 1},
}


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """The facts about a model before it is fetched.

    Attributes:
        ref: as the user named it.
        kind: where it comes from.
        name: what the metadata calls it: hub id, `embedded`, or the folder's name.
        path: the folder, where it is already here.
        revision: commit on the hub; none for all others.
        config: `config.json`; empty when it could not be read, in which case `problems` says why.
        checkpoint: `config.json` of the TensorRT-LLM checkpoint that it is or holds; empty for all others.
        sizes: bytes of each file by relative path; empty for embedded models.
        hashes: SHA-256 of the large files on the hub; empty for all others.
        license: as its card names it; none where it does not.
        chat_template: whether one comes with it.
        problems: everything that is wrong with it.
        thinks: whether it thinks before each reply, and cannot be told not to.
        thought_off: the chat template's variables that keep it from thinking.
    """

    ref: str
    kind: Kind
    name: str
    path: Path | None = None
    revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    chat_template: bool = False
    problems: tuple[Problem, ...] = ()
    thinks: bool = False
    thought_off: tuple[str, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """The size in bytes of all safetensors files together."""
        return sum(size for name, size in self.sizes.items() if name.endswith(".safetensors"))

    @property
    def architecture(self) -> str | None:
        """The first of `architectures`; a TensorRT-LLM checkpoint names its one in `architecture`."""
        names = self.config.get("architectures") or [self.config.get("architecture")]
        return str(names[0]) if names[0] else None


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
    problem = Problem(role, "a folder, a hub id (org/name, org/name@revision) or `embedded`", repr(ref))
    return SourceFacts(ref, "folder", folder.name or ref, problems=(problem,))


def _read_folder(ref: str, folder: Path, role: Role) -> SourceFacts:
    if unreadable := _unreadable(folder):
        remedy = "let this user read it; in a container, `docker run --user`"
        problem = Problem(role, f"to read {unreadable}", "that this user may not", remedy)
        return SourceFacts(ref, "folder", folder.name, path=folder, problems=(problem,))
    inside = [*folder.iterdir(), *(folder / CHECKPOINTS).glob("*"), *folder.glob("additional_chat_templates/*.jinja")]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(inside) if path.is_file()}
    documents = {name: json_object(folder / name) for name in READ_FIRST if name in sizes}
    problems = missing_files(role, str(folder), sizes, documents)
    if not problems:
        problems = damaged_weights(role, folder, sizes)
    return SourceFacts(
        ref,
        "folder",
        folder.name,
        path=folder,
        config=_config(documents),
        checkpoint=_checkpoint(documents),
        sizes=sizes,
        license=_license_of(folder / "README.md"),
        chat_template=has_template(sizes, documents),
        problems=tuple(problems),
    )


def _unreadable(folder: Path) -> Path | None:
    """Return the folder, or the first file in it, that this user may not read, as happens in containers."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return folder
    return next((path for path in sorted(folder.iterdir()) if path.is_file() and not os.access(path, os.R_OK)), None)


def _read_hub(ref: str, repo: str, revision: str | None, role: Role) -> SourceFacts:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    found: str
    try:
        token = hub.revealed(hub.token_of(os.environ))
        info = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True)
        siblings = info.siblings or []
        sizes = {file.rfilename: file.size or 0 for file in siblings}
        documents = {
            name: json_object(Path(hf_hub_download(repo, name, revision=info.sha, token=token)))
            for name in READ_FIRST
            if name in sizes
        }
        return SourceFacts(
            ref,
            "hub",
            repo,
            revision=info.sha,
            config=_config(documents),
            checkpoint=_checkpoint(documents),
            sizes=sizes,
            hashes={file.rfilename: file.lfs.sha256 for file in siblings if file.lfs},
            license=info.card_data.get("license") if info.card_data else None,
            chat_template=has_template(sizes, documents),
            problems=tuple(missing_files(role, repo, sizes, documents)),
        )
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
            cached = snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=FETCHED)
        except hub_client.failures():
            reason = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else "the hub is out of reach"
            found = f"no copy in the local cache, and {reason}"
            remedy = "name a folder or `embedded`, or go online"
        else:
            folder = Path(cached)
            facts = _read_folder(ref, folder, role)
            return SourceFacts(
                ref,
                "hub",
                repo,
                path=folder,
                revision=folder.name,
                config=facts.config,
                checkpoint=facts.checkpoint,
                sizes=facts.sizes,
                license=facts.license,
                chat_template=facts.chat_template,
                problems=facts.problems,
            )
    problem = Problem(role, f"the model {ref} on the hub", found, remedy)
    return SourceFacts(ref, "hub", repo, problems=(problem,))


def _config(documents: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """Return `config.json`, with ModelOpt's word on the quantization where it is silent."""
    config = documents.get("config.json") or {}
    stated = (documents.get(HF_QUANT_CONFIG) or {}).get("quantization")
    if isinstance(stated, dict) and not config.get("quantization_config"):
        config = {**config, "quantization_config": {"quant_method": "modelopt", **stated}}
    return config


def _checkpoint(documents: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    for name in ("config.json", f"{CHECKPOINTS}/config.json"):
        if is_checkpoint(document := documents.get(name) or {}):
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
    weights.download(Reference(facts.name, facts.revision), facts.sizes, facts.hashes, FETCHED, progress)
    token = hub.revealed(hub.token_of(os.environ))

    def rest() -> str:
        return snapshot_download(facts.name, revision=facts.revision, allow_patterns=FETCHED, token=token)

    folder = Path(hub.with_retries(rest, progress.step))
    named = HUB_ID.fullmatch(facts.ref)
    weights.write_ref(Reference(facts.name, (named and named["revision"]) or "main"), facts.revision)
    return folder


def content_hash(folder: Path, cache: Path | None = None) -> str:
    """Return a SHA-256 over the names, sizes and hashes of the files that decide a model's answers.

    Args:
        folder: the model.
        cache: JSON file that remembers hashes by path, size and modification time, so that a second run need not read
            gigabytes again; none hashes everything.
    """
    known: dict[str, list[Any]] = (json_object(cache) or {}) if cache and cache.is_file() else {}
    lines = []
    templates = sorted(folder.glob("additional_chat_templates/*.jinja"))
    for path in (*sorted(folder.iterdir()), *templates):
        if not path.is_file() or not path.name.endswith(CONTENT_SUFFIXES):
            continue
        status = path.stat()
        entry = known.get(str(path.resolve()))
        if entry is None or entry[:2] != [status.st_size, status.st_mtime_ns]:
            entry = [status.st_size, status.st_mtime_ns, sha256_of(path)]
            known[str(path.resolve())] = entry
        lines.append(f"{entry[2]}  {status.st_size}  {path.relative_to(folder).as_posix()}\n")
    if cache:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(known), encoding="utf-8")
        partial.replace(cache)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _license_of(card: Path) -> str | None:
    """Return the licence that a model card's front matter names."""
    if not card.is_file():
        return None
    from huggingface_hub import metadata_load
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        name = (metadata_load(card) or {}).get("license")
    except (ValueError, YAMLError):
        return None  # front matter that is no YAML: a licence we cannot read is one we do not know
    return str(name) if name else None
