"""The prompt format of a source: its tokenizer and chat template, loaded as the server will load them.

What the server would refuse is told by the plan. Of a model on the hub the few files are fetched that this takes.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.checkpoint.config_reader import ConfigError, read_object, shown, text_config
from pipeline.problem import Problem
from pipeline.source.model_files import TOKENIZER_FILES
from pipeline.source.source_facts import SourceFacts
from runtime.artifact import hub, hub_client
from runtime.text.formats import vocabulary_size
from runtime.text.prompt import Budgets, PromptRenderer

# How the runtime words what it refuses.
REFUSAL = re.compile(r"expected (?P<expected>.*?), found:? (?P<found>[^;]*)(?:; (?P<next>.*))?")
CORRECT = "correct it, or delete it"
NEXT = "choose an instruct model with a fast tokenizer"
NEEDED_PREFIXES = ("tokenizer", "chat_template", "special_tokens", "added_tokens", "additional_chat_templates/")
GENERATION = "generation_config.json"
NEEDED_NAMES = TOKENIZER_FILES | {"config.json", "merges.txt", GENERATION}


def with_prompt_format(facts: SourceFacts, *, think: bool) -> SourceFacts:
    """Return the facts with those about thought, or with the problem that the server would have.

    Args:
        facts: the chat model's.
        think: whether thought has a budget.
    """
    # The embedded model is not there yet; it is known.
    if facts.problems or facts.kind == "embedded":
        return facts
    try:
        folder = _folder(facts)
        renderer = PromptRenderer(folder, Budgets(), think=think)
    except ValueError as error:
        told = REFUSAL.search(str(error))
        expected, found = (told["expected"], told["found"]) if told else ("a chat template", str(error))
        next_step = told["next"] if told and told["next"] else NEXT
        refused = Problem("CHAT_MODEL", f"{expected}, in {facts.ref}", found, next_step)
        return replace(facts, problems=(refused,))
    except hub_client.failures() as error:
        unread = Problem("CHAT_MODEL", f"the tokenizer of {facts.ref}", hub.reason(error), "try again")
        return replace(facts, problems=(unread,))
    except Exception as error:  # noqa: BLE001 - whatever odd files make of a tokenizer and its template
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        odd = Problem("CHAT_MODEL", f"a tokenizer and a chat template that load, in {facts.ref}", found, NEXT)
        return replace(facts, problems=(odd,))
    problem = (
        _mark_problem(folder, facts.ref)
        or _vocabulary_problem(folder, renderer, facts.ref)
        or _generation_problem(folder, facts.ref)
        or _config_problem(facts, folder)
    )
    if problem is not None:
        return replace(facts, problems=(problem,))
    return replace(facts, thinks=renderer.format.thinks, thought_off=tuple(renderer.off))


def _vocabulary_problem(folder: Path, renderer: PromptRenderer, ref: str) -> Problem | None:
    """Return the problem of a model that has no embedding for a token of its prompts: one would end the engine."""
    size = vocabulary_size(folder)
    highest, text = renderer.highest_token()
    # Sizes that are none are told with the rest of the config.
    if size is None or size <= 1 or highest < size:
        return None
    expected = f"a tokenizer of the {size} tokens that the model has, in {ref}"
    next_step = "save both together, after resize_token_embeddings, or correct vocab_size in config.json"
    return Problem("CHAT_MODEL", expected, f"token {highest}, {text!r}", next_step)


def _generation_problem(folder: Path, ref: str) -> Problem | None:
    """Return what engines would have with a model's generation config; one that is no JSON they take for none."""
    from transformers import GenerationConfig

    path = folder / GENERATION
    if not path.is_file():
        return None
    try:
        told = _token_problem(read_object(path), f"{GENERATION} of {ref}", vocabulary_size(folder), CORRECT)
        if told is not None:
            return told
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except ConfigError as error:
        return Problem("CHAT_MODEL", f"{error.expected} in {GENERATION} of {ref}", error.found, CORRECT)
    except Exception as error:  # noqa: BLE001 - whatever a value makes it raise
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Problem("CHAT_MODEL", f"a {GENERATION} that can be read, in {ref}", found, CORRECT)
    return None


def _config_problem(facts: SourceFacts, folder: Path) -> Problem | None:
    """Return the problem with the tokens that a model's config names: engines end replies by them, too."""
    try:
        text = text_config(facts.config).values
    except ConfigError:
        return None  # told with the rest of the config
    return _token_problem(text, f"the config.json of {facts.ref}", vocabulary_size(folder), "correct it")


def _token_problem(stated: Mapping[str, object], where: str, size: int | None, next_step: str) -> Problem | None:
    """Return the first of the tokens that a config names which is none: what begins, ends or fills up a text.

    What begins or fills up one is -1 in many configs, for none, or lies behind the vocabulary: no engine reads it.
    """
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        ends = key == "eos_token_id"
        named = stated.get(key)
        for token in named if isinstance(named, list) and ends else [] if named is None else [named]:
            if not isinstance(token, int) or isinstance(token, bool) or token < (0 if ends else -1):
                expected = "a token's number" + (", or a list of them," if ends else "")
                return Problem("CHAT_MODEL", f"{expected} as {key} in {where}", shown(named), next_step)
            if ends and size and token >= size:
                expected = f"tokens below {size}, which the model has, as {key} in {where}"
                return Problem("CHAT_MODEL", expected, shown(named), next_step)
    return None


def _mark_problem(folder: Path, ref: str) -> Problem | None:
    """Return the problem of a template that begins with a byte order mark, which every prompt would begin with."""
    for path in (folder / "chat_template.jinja", *sorted(folder.glob("additional_chat_templates/*.jinja"))):
        if path.is_file() and path.read_bytes().startswith(codecs.BOM_UTF8):
            name = path.relative_to(folder).as_posix()
            expected = f"UTF-8 without a byte order mark in {name} of {ref}"
            return Problem("CHAT_MODEL", expected, "one", "save it without")
    return None


def _folder(facts: SourceFacts) -> Path:
    """The folder with the files that rendering takes."""
    if facts.path is not None:
        return facts.path
    from huggingface_hub import hf_hub_download

    token = hub.revealed(hub.token_of(os.environ))
    names = [name for name in facts.sizes if name in NEEDED_NAMES or name.startswith(NEEDED_PREFIXES)]
    for name in sorted(names):
        fetched = Path(hf_hub_download(facts.name, name, revision=facts.revision, token=token))
        if name == "config.json":
            folder = fetched.parent
    return folder
