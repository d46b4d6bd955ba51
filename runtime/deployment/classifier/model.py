"""A checkpoint's tokenizer and network, asked in batches by one thread."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.deployment.classifier.facts import (
    detach_from_files,
    model_config,
    ordinary_token,
    padding_of,
    positions_of,
    require_whole,
)
from runtime.deployment.classifier.window import is_multi_label, trained_window, window_of
from runtime.text.text_tokens import LIKELY_CHARACTERS_PER_TOKEN
from runtime.text.tokenizer import load_fast_tokenizer

# Tokens of one forward pass, padding included: bounds memory, and the time that one long request costs the others.
BATCH_TOKENS = 16384
# Characters of a question that are tokenized at least, where they give fewer tokens than the window has. Long words are
# one unknown token to some tokenizers, spaces none: without an end a long text of them would be tokenized whole, for
# every decision again that it is in the history of, and everybody would wait for that.
LEAST_CHARACTERS = 4096
# How far apart a question's answers alone and in a batch may be: the arithmetic of float32 or float16, and no more.
SAME_ON_CPU, SAME_ON_GPU = 1e-3, 0.03

# The probability of each tool.
Row = tuple[float, ...]


def format_utterances(utterances: Sequence[str]) -> str:
    """What the classifier reads: the user's turns, one a line, oldest first, the current utterance last.

    >>> format_utterances(["hi there", "", "look at this"])
    'hi there\\nlook at this'
    """
    return "\n".join(utterance for utterance in utterances if utterance)


def _from_a_word(text: str) -> str:
    """Return a cut text without the word in which it may begin, whose tokens are others than the whole word's.

    A text that is one word is left as it is.

    >>> _from_a_word("ok at the cat"), _from_a_word("猫を見て")
    (' at the cat', '猫を見て')
    """
    return text[next((place for place, letter in enumerate(text) if letter.isspace()), 0) :]


class SequenceClassifier:
    """Tokenizer and model, read into memory; used by one thread, and `place`d first.

    Attributes:
        folder: where it came from.
        model: the network, in float.
        device: where it lies.
        labels: indices of the logits that are asked for.
        independent: each label has a probability of its own.
        pad: token id that fills a batch.
        padded: texts of several lengths are asked about at once.
        global_attention: the model wants one token that attends to all others, which is the first.
        window: tokens that it reads at most.
        tokenizer: truncates on the left: the newest text stays.
    """

    def __init__(
        self,
        folder: Path,
        max_tokens: int,
        labels: tuple[int, ...],
        device: str,
        gpu_fraction: float | None,
        cpu_threads: int,
    ) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        on_gpu = device.startswith("cuda")
        tokenizer = load_fast_tokenizer(folder)
        model, told = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=model_config(folder),
            dtype=torch.float16 if on_gpu else torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,  # the other format is unpickled
            output_loading_info=True,
        )
        require_whole(model, told, folder)
        count = model.config.num_labels
        if count > 1 and max(labels) >= count:
            what = "tools with labels" if len(labels) > 1 else "positive_label"
            raise ValueError(f"{folder}: expected a label below {count}, found {what} {', '.join(map(str, labels))}")
        if count == 1 and len(labels) > 1:
            raise ValueError(f"{folder}: expected a label for each of {len(labels)} tools, found one")
        self._folder = folder
        self._model = model.eval()
        detach_from_files(self._model)
        self._device = device
        self._gpu_fraction = gpu_fraction  # of a GPU's memory
        self._cpu_threads = cpu_threads  # at most, on a CPU
        self._padded = True
        self._labels = [0] if count == 1 else list(labels)
        self._independent = count == 1 or is_multi_label(model.config.to_dict())
        self._pad = padding_of(self._model, tokenizer)
        self._global_attention = model.config.model_type == "longformer"
        self._ordinary = ordinary_token(tokenizer, self._pad)  # a token that is neither padding nor an end
        self._window = max_tokens
        self._tokenizer = tokenizer.backend_tokenizer

    @property
    def on_gpu(self) -> bool:
        """Whether it is asked on a GPU."""
        return self._device.startswith("cuda")

    def place(self) -> None:
        """Put the network where it is asked, for which a GPU is used for the first time, and learn its window."""
        import torch

        if self.on_gpu and self._gpu_fraction is not None:
            torch.cuda.set_per_process_memory_fraction(self._gpu_fraction, torch.device(self._device).index or 0)
        if not self.on_gpu:
            # For the whole process: beside this model, it computes nothing with torch.
            torch.set_num_threads(min(self._cpu_threads, len(os.sched_getaffinity(0))))
        self._model = self._model.to(self._device)
        config = self._model.config.to_dict()
        positions = positions_of(self._model, self._ordinary)
        window = window_of(config) if positions is None else trained_window(config, positions)
        self._window = min(self._window, window)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._window, direction="left")
        self._tokenizer.encode_special_tokens = True  # what a user writes is text, `[SEP]` too

    def prove(self) -> None:
        """Ask about a full window, and about short and long texts at once, which must be answered as they are alone.

        Raises:
            ValueError: an answer is not a number, or depends on what else is asked.
        """
        full = self._longest(self._window)
        self.probabilities([full])
        mixed = [("hello",), ("hello", "look at this"), self._longest(min(self._window, BATCH_TOKENS // 4))]
        alone = [self.probabilities([conversation])[0] for conversation in mixed]
        if not self._agree(alone, self.probabilities(mixed)):
            # Some read their answer at the last place, padding or not: they are asked about equal lengths at once.
            self._padded = False
            together = self.probabilities(mixed * 2)
            if not self._agree(alone * 2, together):
                raise ValueError(
                    f"{self._folder}: expected the same answers alone and in a batch, found {alone} and {together}; "
                    "see pad_token_id in its config.json and tokenizer_config.json"
                )

    def _agree(self, alone: Sequence[Row], together: Sequence[Row]) -> bool:
        most = SAME_ON_GPU if self._device.startswith("cuda") else SAME_ON_CPU
        pairs = [pair for rows in zip(alone, together, strict=True) for pair in zip(*rows, strict=True)]
        return all(abs(one - other) <= most for one, other in pairs)  # NaN is in no range

    @staticmethod
    def _longest(tokens: int) -> tuple[str, ...]:
        """Words that are at least so many tokens."""
        return (" ".join(["hello"] * tokens),)

    def probabilities(self, conversations: Sequence[tuple[str, ...]]) -> list[Row]:
        """Probability of each label that is asked for, for each conversation, in order."""
        encoded = [self._encode(utterances) for utterances in conversations]
        found: list[Row] = [()] * len(encoded)
        for batch in batches_of([len(ids) for ids in encoded], padded=self._padded):
            for index, row in zip(batch, self._forward([encoded[i] for i in batch]), strict=True):
                found[index] = row
        return found

    @property
    def most_characters(self) -> int:
        """Characters of a question that are tokenized at most, counted from its end."""
        return max(self._window * LIKELY_CHARACTERS_PER_TOKEN, LEAST_CHARACTERS)

    def _encode(self, utterances: tuple[str, ...]) -> list[int]:
        """Token ids of the newest part of the turns. Text that cannot be in the window is not tokenized."""
        characters, most = self._window * LIKELY_CHARACTERS_PER_TOKEN, self.most_characters
        while True:
            newest, size = len(utterances), 0
            while newest and size <= characters:
                newest -= 1
                size += len(utterances[newest]) + 1
            text = format_utterances(utterances[newest:])[-characters:]
            whole = newest == 0 and len(text) < characters
            if not whole and characters < most:
                text = _from_a_word(text)
            # A tokenizer may have no token at all for a text; the model needs one.
            ids: list[int] = self._tokenizer.encode(text).ids or [self._pad]
            if len(ids) >= self._window or whole or characters == most:
                return ids
            characters = min(2 * characters, most)

    def _forward(self, batch: list[list[int]]) -> list[Row]:
        import torch

        width = max(len(ids) for ids in batch)
        padded = torch.tensor([ids + [self._pad] * (width - len(ids)) for ids in batch], device=self._device)
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch], device=self._device)
        inputs: dict[str, Any] = {"input_ids": padded, "attention_mask": mask}
        if self._global_attention:
            inputs["global_attention_mask"] = torch.zeros_like(mask)
            inputs["global_attention_mask"][:, 0] = 1
        with torch.inference_mode():
            logits = self._model(**inputs).logits.float()
            likely = logits.sigmoid() if self._independent else logits.softmax(-1)
        return [tuple(row) for row in likely[:, self._labels].tolist()]


def batches_of(lengths: Sequence[int], *, padded: bool = True) -> list[list[int]]:
    """Indices grouped so that a group, padded to its longest, is at most `BATCH_TOKENS`; similar lengths together.

    Without padding only equal lengths are.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        longest = lengths[batches[-1][0]] if batches else 0
        full = not batches or longest * (len(batches[-1]) + 1) > BATCH_TOKENS
        if full or (not padded and lengths[index] != longest):
            batches.append([])
        batches[-1].append(index)
    return batches
