"""The prompt format of a source: its tokenizer and chat template, loaded as the server will load them.

What the server would refuse is told by the plan. Of a model on the hub the few files are fetched that this takes.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from pipeline.problem import Problem
from pipeline.source.model_files import TOKENIZER_FILES
from pipeline.source.source_facts import SourceFacts
from runtime.artifact import hub, hub_client
from runtime.text.prompt import Budgets, PromptRenderer, vocabulary_size

# How the runtime words what it refuses.
REFUSAL = re.compile(r"expected (?P<expected>.*?), found:? (?P<found>[^;]*)")
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
        problem = Problem("CHAT_MODEL", f"{expected}, in {facts.ref}", found, NEXT)
        return replace(facts, problems=(problem,))
    except hub_client.failures() as error:
        problem = Problem("CHAT_MODEL", f"the tokenizer of {facts.ref}", hub.reason(error), "try again")
        return replace(facts, problems=(problem,))
    except Exception as error:  # noqa: BLE001 - whatever odd files make of a tokenizer and its template
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        problem = Problem("CHAT_MODEL", f"a tokenizer and a chat template that load, in {facts.ref}", found, NEXT)
        return replace(facts, problems=(problem,))
    if (odd := _generation_problem(folder, facts.ref)) is not None:
        return replace(facts, problems=(odd,))
    if (beyond := _vocabulary_problem(folder, renderer, facts.ref)) is not None:
        return replace(facts, problems=(beyond,))
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

    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return None
    except Exception as error:  # noqa: BLE001 - whatever a value makes it raise
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Problem("CHAT_MODEL", f"a {GENERATION} that can be read, in {ref}", found, "correct it, or delete it")
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
