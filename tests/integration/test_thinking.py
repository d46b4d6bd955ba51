"""A model that thinks aloud, with the real engine: only speech is said, and replies end where the template says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.engines import Delta, EngineOptions, Sampling
from runtime.engines.vllm.engine import VllmEngine
from runtime.text.prompt import Budgets, PromptRenderer
from runtime.text.replies.reply import generate
from runtime.text.replies.speech import Speech
from tests.harness.templates.thought import ALWAYS, PLAIN, SWITCHED

pytestmark = pytest.mark.engine

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=60)


@pytest.fixture(scope="module")
def folder(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as careless finetunes come: nothing but the template says where a reply ends."""
    folder = shutil.copytree(chat_folder, tmp_path_factory.mktemp("thinking") / "model")
    for name, changes in (
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}),
        ("config.json", {"eos_token_id": 0}),
        ("generation_config.json", {"eos_token_id": 0}),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def renderer_of(folder: Path, template: str, *, think: bool = False) -> PromptRenderer:
    """The folder's, with another template."""
    (folder / "chat_template.jinja").write_text(template)
    return PromptRenderer(folder, Budgets(), think)


class Reply:
    """One reply, from the prompt to what is heard."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.texts: list[str] = []

    async def of(self, engine: VllmEngine, renderer: PromptRenderer, utterance: str, thinking: int = 0) -> Speech:
        """Have it generated."""
        persona = "You are Ada. Answer in one short sentence."
        parts = {"persona": persona, "runtime_text": None, "history": ()}
        prompt = renderer.render(**parts, utterance=utterance)
        speech = Speech(
            lambda delta, _: self.deltas.append(delta), self.texts.append, sanitize=True, form=renderer.format
        )
        await generate(engine, prompt.token_ids, GREEDY, speech, renderer.format, thinking)
        speech.finish()
        return speech


class Echo(VllmEngine):
    """The real engine, whose every reply begins with what a model would think: the small one cannot think itself."""

    said: Sequence[str] = ()

    async def generate(self, prompt, sampling, on_delta, *more) -> None:
        for text in self.said:
            on_delta(Delta(text, 1))
        await super().generate(prompt, sampling, on_delta, *more)


async def test_a_real_engine_with_a_template_that_thinks_speaks_only_speech(folder: Path) -> None:
    options = EngineOptions(max_num_seqs=2, max_model_len=1024, cpu_kv_cache_gib=0.25)
    engine = Echo(folder, options)
    await engine.start()
    try:
        plain = Reply()
        await plain.of(engine, renderer_of(folder, PLAIN), "What is the capital of France?")
        # What so small a model knows differs from one processor to the next.
        assert "".join(plain.texts).strip()
        # Nothing but the template told the engine where a turn ends.
        assert plain.deltas[-1].finish_reason == "stop"
        assert sum(len(delta.token_ids) for delta in plain.deltas) == sum(delta.tokens for delta in plain.deltas)

        switched = renderer_of(folder, SWITCHED)
        assert switched.off == {"enable_thinking": False}
        quiet, aloud = Reply(), Reply()
        await quiet.of(engine, switched, "What is the capital of France?")
        engine.said = ("<think>", "\n", "They", " ask.", "\n", "</think>", "\n\n")
        speech = await aloud.of(engine, switched, "What is the capital of France?")
        assert "".join(aloud.texts) == "".join(quiet.texts) != ""
        assert speech.hidden_tokens == 6

        # A thought that never ends: it has its budget, and the reply goes on behind it.
        engine.said = ()
        always = renderer_of(folder, ALWAYS, think=True)
        assert always.format.thinks
        cut = Reply()
        speech = await cut.of(engine, always, "What is the capital of France?", thinking=12)
        assert 0 < speech.hidden_tokens <= 12
        assert speech.spoken_tokens > 0
        assert "".join(cut.texts).strip()
        assert cut.deltas[-1].finish_reason in ("stop", "length")
        assert (await engine.load()).running == 0
    finally:
        await engine.shutdown()
