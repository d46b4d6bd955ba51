"""The classifier: any family, in float, batched, off the event loop."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from pathlib import Path

import pytest

from runtime.deployment.classifier import Decision, ToolClassifier, ToolClosedError, format_utterances, window_of
from runtime.deployment.classifier.facts import padding_of, positions_of
from runtime.deployment.classifier.model import BATCH_TOKENS, SequenceClassifier, batches_of
from runtime.deployment.classifier.window import PADDING_BEFORE_POSITIONS
from tests.harness.models.classifiers import WORDS, checkpoint


@pytest.fixture(scope="module", params=["bert", "modernbert", "longformer"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture
async def classifier(folder):
    running = ToolClassifier(folder, threshold=0.5, max_tokens=64)
    await running.start()
    yield running
    await running.shutdown()


def test_turns_are_lines_with_the_current_one_last():
    assert format_utterances(["hello", "", "look at this"]) == "hello\nlook at this"
    assert format_utterances([]) == ""


def reference(folder: Path, text: str) -> float:
    """What transformers itself says."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = dict(AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", return_token_type_ids=False))
    if model.config.model_type == "longformer":
        inputs["global_attention_mask"] = torch.zeros_like(inputs["input_ids"])
        inputs["global_attention_mask"][:, 0] = 1
    with torch.inference_mode():
        return model(**inputs).logits.softmax(-1)[0, 1].item()


async def test_it_says_what_transformers_says(classifier, folder):
    decision = await classifier.decide(["hello cat", "what is it"], "look at this")
    assert decision.probability == pytest.approx(reference(folder, "hello cat\nwhat is it\nlook at this"), abs=1e-4)
    assert decision.take_screenshot == (decision.probability >= 0.5)


async def test_a_batch_gives_the_answers_of_single_questions(classifier):
    questions = [([], "look at this")] + [(["hello cat"] * n, WORDS[n % len(WORDS)]) for n in range(12)]
    single = [await classifier.decide(*question) for question in questions]
    batched = await asyncio.gather(*(classifier.decide(*question) for question in questions))
    assert [d.probability for d in batched] == pytest.approx([d.probability for d in single], abs=1e-4)
    assert len({round(d.probability, 4) for d in single}) > 3


async def test_the_newest_words_are_kept(classifier):
    """A history of any length is the same as its end, which fills the window, and the utterance counts in it."""
    history = ["the cat", "hello you"] * 5_000
    long = await classifier.decide(history, "look at this")
    short = await classifier.decide(history[-40:], "look at this")
    other = await classifier.decide(history, "now now now")
    assert long.probability == pytest.approx(short.probability, abs=1e-5)
    assert long.probability != pytest.approx(other.probability, abs=1e-5)


async def test_control_words_in_an_utterance_are_text(bert):
    running = ToolClassifier(bert, threshold=0.5, max_tokens=64)
    await running.start()
    model = running._model
    assert model is not None
    assert model._encode(("look [SEP] [CLS]",)).count(3) == 1
    await running.shutdown()


async def test_one_logit_is_a_probability_too(tmp_path):
    running = ToolClassifier(checkpoint("bert", tmp_path, labels=1), threshold=0.0, max_tokens=64)
    await running.start()
    decision = await running.decide([], "look at this")
    await running.shutdown()
    assert 0 < decision.probability < 1
    assert decision.take_screenshot


async def test_the_positive_label_and_the_threshold_decide(bert):
    found = []
    for label in (0, 1):
        running = ToolClassifier(bert, threshold=0.5, max_tokens=64, positive_label=label)
        await running.start()
        found.append(await running.decide([], "look at this"))
        await running.shutdown()
    assert found[0].probability + found[1].probability == pytest.approx(1, abs=1e-5)
    assert found[0].take_screenshot != found[1].take_screenshot


async def test_a_label_that_the_model_lacks_is_refused(bert):
    with pytest.raises(ValueError, match="expected a label below 2"):
        await ToolClassifier(bert, threshold=0.5, max_tokens=64, positive_label=2).start()


async def test_what_waits_becomes_one_batch_and_nothing_waits_for_more(bert, monkeypatch):
    running = ToolClassifier(bert, threshold=0.5, max_tokens=64)
    await running.start()
    model = running._model
    assert model is not None
    sizes: list[int] = []
    entered, gate = threading.Event(), threading.Event()
    forward = model.probabilities

    def watched(conversations):
        sizes.append(len(conversations))
        entered.set()
        gate.wait(5)
        return forward(conversations)

    monkeypatch.setattr(model, "probabilities", watched)
    first = asyncio.create_task(running.decide([], "hello"))
    await asyncio.to_thread(entered.wait, 5)
    rest = [asyncio.create_task(running.decide([], word)) for word in WORDS[:6]]
    await asyncio.sleep(0)
    cancelled = rest.pop()
    cancelled.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert isinstance(await first, Decision)
    await asyncio.gather(*rest)
    assert sizes == [1, 5]
    await running.shutdown()


async def test_the_event_loop_runs_on_while_it_thinks(bert, monkeypatch):
    running = ToolClassifier(bert, threshold=0.5, max_tokens=64)
    await running.start()
    model = running._model
    assert model is not None
    threads: set[int] = set()
    entered, free = threading.Event(), threading.Event()

    def held(part):
        def run(material):
            threads.add(threading.get_ident())
            entered.set()
            assert free.wait(30), "the event loop stood still"
            return part(material)

        return run

    for name in ("_encode", "_forward"):
        monkeypatch.setattr(model, name, held(getattr(model, name)))
    question = asyncio.create_task(running.decide(["cat"], "look"))
    assert await asyncio.to_thread(entered.wait, 30)
    free.set()
    assert isinstance(await question, Decision)
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    await running.shutdown()


async def test_a_failing_forward_pass_fails_its_questions_alone(bert, monkeypatch):
    running = ToolClassifier(bert, threshold=0.5, max_tokens=64)
    await running.start()
    model = running._model
    assert model is not None
    with monkeypatch.context() as patch:
        patch.setattr(model, "_forward", lambda batch: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError):
            await running.decide([], "look")
    assert isinstance(await running.decide([], "look"), Decision)
    await running.shutdown()


async def test_after_shutdown_it_refuses_and_a_second_shutdown_does_nothing(bert):
    running = ToolClassifier(bert, threshold=0.5, max_tokens=64)
    with pytest.raises(ToolClosedError):
        await running.decide([], "look")
    await running.start()
    await running.shutdown()
    await running.shutdown()
    with pytest.raises(ToolClosedError):
        await running.decide([], "look")
    assert not [thread for thread in threading.enumerate() if thread.name == "tool-classifier"]


def test_batches_are_bounded_and_hold_everything_once():
    lengths = [1536] * 25 + [10] * 100 + [5000] * 7
    batches = batches_of(lengths)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(max(lengths[i] for i in batch) * len(batch) <= BATCH_TOKENS for batch in batches)
    assert len(batches) <= 8
    equal = batches_of(lengths, padded=False)
    assert sorted(index for batch in equal for index in batch) == list(range(len(lengths)))
    assert all(len({lengths[i] for i in batch}) == 1 for batch in equal)


@pytest.mark.parametrize("threads", [1, 2])
async def test_it_computes_on_as_many_threads_as_it_was_given(bert, monkeypatch, threads):
    import torch

    forward, used = SequenceClassifier._forward, []

    def watched(self, batch):
        used.append(torch.get_num_threads())
        return forward(self, batch)

    monkeypatch.setattr(SequenceClassifier, "_forward", watched)
    before = torch.get_num_threads()
    running = ToolClassifier(bert, threshold=0.5, max_tokens=64, cpu_threads=threads)
    try:
        await running.start()
        await running.decide((), "look")
    finally:
        await running.shutdown()
        torch.set_num_threads(before)
    assert set(used) == {min(threads, len(os.sched_getaffinity(0)))}


# Model types that are asked with text alone, and need no more than the usual sizes.
OTHERS = ("albert", "bert", "distilbert", "electra", "gpt2", "opt")
FAMILIES = [*sorted(PADDING_BEFORE_POSITIONS.keys() - {"layoutlmv3"}), *OTHERS]


def longest(model, most: int) -> int:
    """The longest text that a model reads, found by asking it."""
    import torch

    for length in range(most, 0, -1):
        ids = torch.full((1, length), 5)
        try:
            with torch.inference_mode():
                model(input_ids=ids, attention_mask=torch.ones_like(ids))
        except (IndexError, RuntimeError):
            continue
        return length
    return 0


def tiny_config(family: str, pad: int | None):
    from transformers import AutoConfig

    sizes = {"hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if family == "distilbert":
        sizes = {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2}
    elif family == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}
    elif family == "opt":
        sizes = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes["word_embed_proj_dim"] = 16
    if family != "gpt2":
        sizes["max_position_embeddings"] = 24
    if pad is not None:
        sizes["pad_token_id"] = pad
    extra = {
        "longformer": {"attention_window": [4]},
        "luke": {"entity_vocab_size": 4, "entity_emb_size": 8},
        "albert": {"embedding_size": 8},
        "electra": {"embedding_size": 16},
        "lilt": {"channel_shrink_ratio": 1, "max_2d_position_embeddings": 32},
        "markuplm": {"max_depth": 4, "xpath_unit_hidden_size": 4},
        "xmod": {"default_language": "en_XX", "languages": ["en_XX"], "adapter_reduction_factor": 1},
        "esm": {"position_embedding_type": "absolute"},
    }.get(family, {})
    return AutoConfig.for_model(family, vocab_size=12, num_labels=2, **sizes, **extra)


@pytest.mark.parametrize("pad", [None, 0, 1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_is_what_the_model_reads(family: str, pad: int | None) -> None:
    """Planned from `config.json` as it is written, served from what transformers makes of it."""
    import json

    from transformers import AutoModelForSequenceClassification

    if family == "esm" and pad is None:
        pytest.skip("has no padding index of its own")
    config = tiny_config(family, pad)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    written = json.loads(config.to_json_string(use_diff=True))
    assert window_of(written) == window_of(config.to_dict())
    assert window_of(written) == longest(model, 40)
    assert positions_of(model, 5) == longest(model, 40), "the model says it itself"


DECODERS = ("llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "mistral", "opt")


def decoder(family: str, folder: Path, pad: int | None, *, ends: bool = False, padded: bool = True) -> Path:
    """Write a tiny random decoder as classifier, with a tokenizer that may append an end and name no padding."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "</s>", "<unk>", *WORDS]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokens = {"eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": "[PAD]"} if padded else {})
    PreTrainedTokenizerFast(tokenizer_object=made, **tokens).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 96}
    if family in ("llama", "qwen3", "gemma2", "mistral"):
        sizes |= {"num_key_value_heads": 2, "head_dim": 16}
    elif family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96}
    elif family == "opt":
        sizes |= {"ffn_dim": 64, "word_embed_proj_dim": 32}
    ends_of = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": pad}
    # Rows behind the vocabulary, as families pad their tables.
    config = AutoConfig.for_model(family, vocab_size=len(words) + 3, num_labels=2, **sizes, **ends_of)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        model.score.weight.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("pad", [None, 0, -1])
@pytest.mark.parametrize("family", DECODERS)
async def test_a_decoder_is_asked_in_batches_whatever_its_config_says_of_padding(
    family: str, pad: int | None, ends: bool, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = decoder(family, tmp_path, pad, ends=ends, padded=pad is not None)
    texts = ["look at this", "hello", "look at my screen now the cat hello what is it", "[PAD]", "</s>"]
    running = ToolClassifier(folder, threshold=0.5, max_tokens=64)
    await running.start()
    batched = await asyncio.gather(*(running.decide([], text) for text in texts))
    assert running._model is not None
    encoded = [running._model._encode((text,)) for text in texts]
    await running.shutdown()
    # What transformers itself says of each alone: its last token decides.
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.pad_token_id = None
    with torch.inference_mode():
        alone = [model(input_ids=torch.tensor([ids])).logits.softmax(-1)[0, 1].item() for ids in encoded]
    assert [decision.probability for decision in batched] == pytest.approx(alone, abs=1e-4)
    assert AutoTokenizer.from_pretrained(folder)


async def test_a_full_window_is_proven_at_the_start(bert, monkeypatch) -> None:
    forward, widths = SequenceClassifier._forward, []

    def watched(self, batch):
        widths.append([len(ids) for ids in batch])
        return forward(self, batch)

    monkeypatch.setattr(SequenceClassifier, "_forward", watched)
    running = ToolClassifier(bert, threshold=0.5, max_tokens=10_000)
    await running.start()
    await running.shutdown()
    assert [64] in widths
    assert any(len(set(lengths)) > 2 for lengths in widths), "texts of several lengths in one batch"


@pytest.mark.parametrize("fails", ["batch", "full window"])
async def test_what_fails_under_load_fails_at_the_start(bert, monkeypatch, fails: str) -> None:
    forward = SequenceClassifier._forward

    def failing(self, batch):
        if len(batch) > 1 if fails == "batch" else max(map(len, batch)) > 60:
            raise RuntimeError("no batches here")
        return forward(self, batch)

    monkeypatch.setattr(SequenceClassifier, "_forward", failing)
    with pytest.raises(RuntimeError, match="no batches here"):
        await ToolClassifier(bert, threshold=0.5, max_tokens=64).start()


@pytest.mark.parametrize("wrong", [float("nan"), 0.9])
async def test_answers_that_depend_on_what_else_is_asked_are_refused(bert, monkeypatch, wrong: float) -> None:
    forward = SequenceClassifier._forward
    monkeypatch.setattr(
        SequenceClassifier, "_forward", lambda self, batch: [(wrong,)] * len(batch) if len(batch) > 1 else [(0.1,)]
    )
    with pytest.raises(ValueError, match="expected the same answers alone and in a batch"):
        await ToolClassifier(bert, threshold=0.5, max_tokens=64).start()
    assert forward is not SequenceClassifier._forward


async def test_loading_that_began_before_is_gone_on_with(bert, monkeypatch) -> None:
    loads: list[object] = []
    load = ToolClassifier._load
    monkeypatch.setattr(ToolClassifier, "_load", lambda self: loads.append(self) or load(self))
    running = ToolClassifier(bert, threshold=0.5, max_tokens=64)
    assert await running.begin() is await running.begin()
    await running.start()
    assert 0 <= (await running.decide((), "look at this")).probability <= 1
    await running.shutdown()
    assert len(loads) == 1


async def test_what_went_wrong_after_loading_began_is_told_at_the_start_alone(tmp_path) -> None:
    running = ToolClassifier(tmp_path, threshold=0.5, max_tokens=64)  # an empty folder
    begun = running.begin()
    await asyncio.wait((begun,))
    with pytest.raises((OSError, ValueError)):
        await running.start()


async def test_for_a_gpu_nothing_is_put_there_before_the_start(bert, monkeypatch) -> None:
    """The engine beside it measures what is free, and may be forked from this process."""
    done: list[str] = []
    monkeypatch.setattr(SequenceClassifier, "place", lambda self: done.append("placed"))
    monkeypatch.setattr(SequenceClassifier, "prove", lambda self: done.append("proven"))
    monkeypatch.setattr(SequenceClassifier, "probabilities", lambda self, asked: [(0.5,) for _ in asked])
    running = ToolClassifier(bert, threshold=0.5, max_tokens=64, device="cuda", gpu_fraction=0.2)
    model = await running.begin()
    assert not done
    assert model._model.device.type == "cpu"
    await running.start()
    assert done == ["placed", "proven"]
    await running.shutdown()


async def test_a_text_without_any_token_is_answered(tmp_path) -> None:
    running = ToolClassifier(decoder("llama", tmp_path, None), threshold=0.5, max_tokens=64)
    await running.start()
    decisions = await asyncio.gather(*(running.decide([], text) for text in ("\u200b \t", "", "look at this")))
    await running.shutdown()
    assert all(0 <= decision.probability <= 1 for decision in decisions)


def test_a_model_without_anything_to_pad_with_is_refused(tmp_path) -> None:
    from types import SimpleNamespace

    import torch

    config = SimpleNamespace(pad_token_id=None, get_text_config=lambda: SimpleNamespace(pad_token_id=None))
    model = SimpleNamespace(config=config, get_input_embeddings=lambda: torch.nn.Embedding(5, 2))

    class Tokenizer:
        pad_token_id = bos_token_id = unk_token_id = None
        all_special_ids = ()

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [1]}

        def __len__(self) -> int:
            return 5

    with pytest.raises(ValueError, match="expected a padding token, found none"):
        padding_of(model, Tokenizer())


def test_every_family_that_numbers_positions_after_the_padding_is_known() -> None:
    from importlib.util import find_spec

    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

    models = Path(find_spec("transformers").submodule_search_locations[0]) / "models"
    numbering = set()
    for kind in CLASSIFIERS:
        for path in (models / model_type_to_module_name(kind)).glob("modeling_*.py"):
            source = path.read_text("utf-8")
            if CLASSIFIERS[kind] in source and "create_position_ids_from_input_ids" in source:
                numbering.add(kind)
    assert {"roberta", "mpnet"} <= numbering <= PADDING_BEFORE_POSITIONS.keys()


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": None}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 0}, 513),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 0}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512, "trained_window": 48}, 48),
        ({"model_type": "bert", "max_position_embeddings": 512, "trained_window": 0}, 512),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
    ],
)
def test_a_window_by_what_a_config_says(config: dict, window: int) -> None:
    assert window_of(config) == window


@pytest.mark.parametrize("found", [[], [0.1, 0.2], SystemExit(1)])
async def test_the_worker_outlives_an_odd_model(bert, monkeypatch, found):
    def odd(conversations):
        if isinstance(found, BaseException):
            raise found
        return found

    running = ToolClassifier(bert, threshold=0.5, max_tokens=64)
    await running.start()
    with monkeypatch.context() as patch:
        patch.setattr(running._model, "probabilities", odd)
        with pytest.raises((ValueError, RuntimeError)):
            await asyncio.wait_for(running.decide([], "look"), 20)
    assert isinstance(await asyncio.wait_for(running.decide([], "look"), 20), Decision)
    await running.shutdown()


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


async def test_it_keeps_its_weights_whatever_is_written_into_their_file(bert, tmp_path):
    """On a CPU they are the file, mapped, as transformers loads them."""
    copied = shutil.copytree(bert, tmp_path / "tool")
    weights = copied / "model.safetensors"
    made = ToolClassifier(copied, threshold=0.5, max_tokens=64)
    await made.start()
    try:
        before = await made.decide((), "look at this")
        with weights.open("r+b") as file:
            file.seek(weights.stat().st_size // 2)
            file.write(b"\x7f" * (weights.stat().st_size // 2))
        assert await made.decide((), "look at this") == before
        assert not is_mapped(weights)
    finally:
        await made.shutdown()
