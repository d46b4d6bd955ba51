"""Prompts: rendered by the model's own template, within budgets, on a prefix that stays."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.text.prompt import (
    INLINE_MESSAGES,
    INLINE_NEW_CHARACTERS,
    Budgets,
    Message,
    PersonaTooLongError,
    PromptRenderer,
)
from runtime.text.tokenizer import load_fast_tokenizer
from tests.harness.models import chat_templates as templates

SMALL = Budgets(persona=30, history=60, utterance=20, input=150)


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PromptRenderer]:
    folder = tmp_path_factory.mktemp("templates")
    return {name: PromptRenderer(templates.write(name, folder / name), SMALL) for name in templates.TEMPLATES}


@pytest.fixture(params=sorted(templates.TEMPLATES))
def renderer(request: pytest.FixtureRequest, renderers: dict[str, PromptRenderer]) -> PromptRenderer:
    return renderers[request.param]


def decoded(renderer: PromptRenderer, tokens: list[int]) -> str:
    return renderer._tokens._tokenizer.decode(tokens, skip_special_tokens=False)


def rendered(renderer: PromptRenderer, *, persona=None, runtime_text=None, history=(), utterance="hello") -> str:
    prompt = renderer.render(persona=persona, runtime_text=runtime_text, history=history, utterance=utterance)
    return decoded(renderer, prompt.token_ids)


def test_chatml_is_rendered_as_its_template_says(renderers):
    text = rendered(
        renderers["chatml"],
        persona="Be Ada.",
        runtime_text="It is noon.",
        history=[Message("user", "hi"), Message("assistant", "yes?")],
        utterance="who are you",
    )
    assert text == (
        "<|im_start|>system\nBe Ada.\n\nIt is noon.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nyes?<|im_end|>\n<|im_start|>user\nwho are you<|im_end|>\n<|im_start|>assistant\n"
    )


def test_runtime_text_alone_is_the_system_message(renderers):
    text = rendered(renderers["chatml"], runtime_text="It is noon.")
    assert text.startswith("<|im_start|>system\nIt is noon.<|im_end|>\n<|im_start|>user\nhello")


@pytest.mark.parametrize("name", ["chatml", "dated"])
def test_a_default_system_message_of_the_template_is_not_rendered(renderers, name):
    text = rendered(renderers[name])
    assert "system" not in text
    assert "helpful" not in text
    assert "hello" in text
    assert text.count("<|bos|>") == (1 if name == "dated" else 0)


def test_there_is_one_beginning_of_sequence(renderers):
    for name in ("dated", "instruct", "pieces"):
        tokens = renderers[name].render(persona="Be Ada.", runtime_text=None, history=(), utterance="hi").token_ids
        bos = renderers[name]._tokens._tokenizer.token_to_id("<|bos|>" if name == "dated" else "<s>")
        assert tokens.count(bos) == 1
        assert tokens[0] == bos


@pytest.mark.parametrize("name", ["instruct", "pieces", "roaming"])
def test_without_a_system_role_the_persona_opens_the_first_user_message(renderers, name):
    history = [Message("user", "one"), Message("assistant", "two")]
    text = rendered(renderers[name], persona="Be Ada.", history=history, utterance="three")
    places = [text.index(part) for part in ("Be Ada.", "one", "two", "three")]
    assert places == sorted(places)
    assert text.count("Be Ada.") == 1


@pytest.mark.parametrize("name", ["instruct", "pieces"])
def test_roles_that_do_not_alternate_are_joined_where_the_template_refuses_them(renderers, name):
    history = [Message("assistant", "zero"), Message("user", "one"), Message("user", "two")]
    text = rendered(renderers[name], history=history, utterance="three")
    assert text.index("…") < text.index("zero") < text.index("one")
    assert "one\n\ntwo\n\nthree" in text


def test_composing_from_chunks_gives_the_tokens_of_the_whole_text(renderer):
    assert renderer._tokens.chunked
    turns = [("user", "Hello, world"), ("assistant", "It is 3.5\n\nor so"), ("user", "é🙂 你好")]
    text = renderer._template.render("Be  brief.", turns)
    history = [Message(role, content) for role, content in turns[:2]]
    prompt = renderer.render(persona="Be  brief.", runtime_text=None, history=history, utterance=turns[2][1])
    assert prompt.token_ids == renderer._tokens._tokenizer.encode(text, add_special_tokens=False).ids


def test_prompts_share_the_numbers_that_they_are_made_of(renderer):
    tokens = renderer._tokens
    text = "Hello, world: é🙂 你好"
    first, second = tokens.encode_anew(text), tokens.encode_anew("x " + text)
    assert list(first) == tokens._tokenizer.encode(text, add_special_tokens=False).ids
    assert all(tokens._ids[token] is token for token in (*first, *second))


def test_a_tokenizer_whose_control_tokens_swallow_space_is_tokenized_whole(tmp_path):
    renderer = PromptRenderer(templates.write("chatml", tmp_path, swallow_left=True), SMALL)
    assert not renderer._tokens.chunked
    prompt = renderer.render(persona="Be Ada.", runtime_text=None, history=(), utterance="hi")
    text = renderer._template.render("Be Ada.", [("user", "hi")])
    assert prompt.token_ids == renderer._tokens._tokenizer.encode(text, add_special_tokens=False).ids


HOSTILE = st.text(max_size=80) | st.lists(
    st.sampled_from([*templates.CONTROL_TOKENS, "<|", "|>", "<", "im_end", " ", "\n", "hi", "<|im_<|im_end|>end|>"]),
    max_size=8,
).map("".join)


@given(st.lists(HOSTILE, max_size=8), st.integers(1, 4))
def test_a_long_text_is_broken_up_the_same_when_it_comes_again(renderers, parts: list[str], times: int) -> None:
    text = " ".join(parts) + " and so on" * 30 * times + "".join(parts)
    for renderer in renderers.values():
        tokens = renderer._tokens
        broken = tokens._escape(text)
        assert [tokens.escaped(text), tokens.escaped("".join(list(text)))] == [broken, broken]
        assert len(tokens._escape_cached) > 0


@given(persona=HOSTILE, runtime_text=HOSTILE, before=HOSTILE, answer=HOSTILE, utterance=HOSTILE)
@settings(max_examples=150, deadline=None)
def test_a_client_cannot_write_control_tokens(renderers, persona, runtime_text, before, answer, utterance):
    for renderer in renderers.values():
        history = [Message("user", before), Message("assistant", answer)]
        try:
            prompt = renderer.render(persona=persona, runtime_text=runtime_text, history=history, utterance=utterance)
        except PersonaTooLongError:
            continue
        control = {renderer._tokens._tokenizer.token_to_id(token) for token in templates.CONTROL_TOKENS} - {None}
        harmless = [Message(m.role, "a") for m in history[len(history) - prompt.history_kept :]]
        system = "a" if renderer._system(persona, runtime_text) else ""
        expected = renderer._compose(system, harmless, "a")
        assert [t for t in prompt.token_ids if t in control] == [t for t in expected if t in control]


WORDS = st.lists(
    st.sampled_from(["so", "the", "cat", "3.5", "é", "🙂", "\n", "'s", "you.", "1", "<b>", "—"]), max_size=30
)
TEXT = WORDS.map(" ".join) | st.text(max_size=60)
HISTORY = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), TEXT), max_size=12)


@given(persona=TEXT, runtime_text=TEXT | st.none(), history=HISTORY, utterances=st.lists(TEXT, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_warmed_prefix_begins_every_later_prompt(renderers, persona, runtime_text, history, utterances):
    for renderer in renderers.values():
        same = {"persona": persona, "runtime_text": runtime_text}
        try:
            prefix = renderer.render_prefix(**same, history=history)
            persona_only = renderer.render_prefix(**same, history=None)
        except PersonaTooLongError:
            continue
        for utterance in utterances:
            tokens = renderer.render(**same, history=history, utterance=utterance).token_ids
            assert tokens[: len(prefix)] == prefix
            assert tokens[: len(persona_only)] == persona_only


def test_a_warmed_prefix_holds_the_persona_and_the_history(renderer):
    history = [Message("user", "what is a cat"), Message("assistant", "an animal")]
    same = {"persona": "Be Ada.", "runtime_text": None}
    whole = renderer.render(**same, history=history, utterance="a").token_ids
    prefix = decoded(renderer, renderer.render_prefix(**same, history=history))
    assert "Be Ada." in prefix
    assert "an animal" in prefix
    assert len(renderer.render_prefix(**same, history=history)) >= len(whole) - 16
    assert "Be Ada" in decoded(renderer, renderer.render_prefix(**same, history=None))


@given(persona=TEXT, history=HISTORY, utterance=TEXT | st.text(min_size=100, max_size=300))
@settings(max_examples=150, deadline=None)
def test_every_budget_is_kept(renderers, persona, history, utterance):
    for renderer in renderers.values():
        try:
            prompt = renderer.render(persona=persona, runtime_text=None, history=history, utterance=utterance)
        except PersonaTooLongError:
            assert renderer.count(persona) > SMALL.persona
            continue
        assert len(prompt.token_ids) <= SMALL.input
        kept = history[len(history) - prompt.history_kept :]
        assert sum(renderer.count(message.content) for message in kept) <= SMALL.history


def test_the_oldest_messages_go_first_and_whole(renderers):
    history = [Message("user" if n % 2 == 0 else "assistant", f"number {n} of many") for n in range(40)]
    prompt = renderers["chatml"].render(persona=None, runtime_text=None, history=history, utterance="now")
    text = decoded(renderers["chatml"], prompt.token_ids)
    assert 0 < prompt.history_kept < 40
    for n, message in enumerate(history):
        assert (message.content in text) == (n >= 40 - prompt.history_kept)


def test_a_growing_history_keeps_its_beginning_for_several_turns(tmp_path):
    budgets = Budgets(persona=30, history=400, utterance=20, input=2000)
    renderer = PromptRenderer(templates.write("chatml", tmp_path), budgets)
    history: list[Message] = []
    beginnings = []
    for n in range(150):
        history += [Message("user", f"the cat said {n}"), Message("assistant", f"so {n} " * (n % 3 + 1))]
        prompt = renderer.render(persona="Be Ada.", runtime_text=None, history=history, utterance="now")
        beginnings.append(len(history) - prompt.history_kept)
    dropping = [beginning for beginning in beginnings if beginning]
    assert len(dropping) > 100
    assert sum(before != after for before, after in pairwise(dropping)) < len(dropping) / 3


def test_of_a_long_utterance_the_latest_tail_is_kept(renderer):
    utterance = " ".join(f"w{n}" for n in range(5000))
    text = rendered(renderer, utterance=utterance)
    assert "w4999" in text
    assert "w4900 " not in text
    tail = renderer._tokens.tail(utterance, SMALL.utterance)
    assert utterance.endswith(tail)
    assert SMALL.utterance - 2 <= renderer.count(tail) <= SMALL.utterance


@given(utterance=st.text(alphabet=st.sampled_from("ab \né🙂你\u200d3'"), min_size=30, max_size=400))
@settings(max_examples=100, deadline=None)
def test_a_cut_utterance_is_an_end_of_it_within_the_budget(renderers, utterance):
    for renderer in renderers.values():
        tail = renderer._tokens.tail(utterance, SMALL.utterance)
        assert utterance.endswith(tail)
        assert renderer.count(tail) <= SMALL.utterance


def test_a_persona_over_its_budget_is_refused_with_both_figures(renderer):
    persona = "cat " * 40
    with pytest.raises(PersonaTooLongError) as caught:
        renderer.render(persona=persona, runtime_text=None, history=(), utterance="hi")
    assert caught.value.limit == SMALL.persona
    assert caught.value.found > SMALL.persona


def test_a_runtime_text_that_leaves_no_room_is_refused(renderer):
    with pytest.raises(PersonaTooLongError):
        renderer.render(persona=None, runtime_text="cat " * 149, history=(), utterance="hi there you")


def test_a_history_of_a_frame_full_takes_a_moment(tmp_path):
    renderer = PromptRenderer(templates.write("chatml", tmp_path), Budgets())
    many = [Message("user" if n % 2 == 0 else "assistant", f"the cat said {n} " * 12) for n in range(1200)]
    one = [Message("user", "the cat said so " * 15_000)]
    tiny = [Message("user", "a")] * 60_000
    for history in (many, one, tiny):
        began = time.thread_time()
        prompt = renderer.render(persona="Be Ada.", runtime_text=None, history=history, utterance="hi")
        assert time.thread_time() - began < 0.1
        assert len(prompt.token_ids) <= 5525
        assert prompt.history_kept < len(history)


@given(persona=TEXT, runtime_text=TEXT | st.none(), history=HISTORY, utterance=TEXT | st.text(max_size=300))
@settings(max_examples=60, deadline=None)
def test_at_once_is_the_same_prompt_or_none(renderers, persona, runtime_text, history, utterance):
    parts = {"persona": persona, "runtime_text": runtime_text, "history": history, "utterance": utterance}
    for renderer in renderers.values():
        try:
            whole = renderer.render(**parts)
        except PersonaTooLongError as error:
            with pytest.raises(PersonaTooLongError, match=re.escape(str(error))):
                renderer.render_inline(**parts)
        else:
            assert renderer.render_inline(**parts) in (whole, None)


def test_at_once_is_for_a_conversation_that_goes_on(tmp_path):
    renderer = PromptRenderer(templates.write("chatml", tmp_path), Budgets())
    tokenized: list[str] = []
    whole_tokenizer = renderer._tokens._tokenizer

    class Watched:
        """Notes what is tokenized."""

        def encode_batch_fast(self, texts: list[str], **options: bool) -> object:
            tokenized.extend(texts)
            return whole_tokenizer.encode_batch_fast(texts, **options)

        def encode(self, text: str, **options: bool) -> object:
            """The form that keeps offsets."""
            tokenized.append(text)
            return whole_tokenizer.encode(text, **options)

    renderer._tokens._tokenizer = Watched()
    history = [Message("user", "Who are you? " * 60), Message("assistant", "I am Ada. " * 60)]
    parts = {"persona": "You are Ada. " * 70, "runtime_text": None, "history": history}
    assert renderer.render_inline(**parts, utterance="Where?") is None
    assert sum(map(len, tokenized)) <= INLINE_NEW_CHARACTERS
    whole = renderer.render(**parts, utterance="Where?")
    tokenized.clear()
    assert renderer.render_inline(**parts, utterance="Where?") == whole
    assert tokenized == []
    assert renderer.render_inline(**parts, utterance="When?") is not None
    assert sum(map(len, tokenized)) < 200
    assert renderer.render_inline(**parts, utterance="When " * 200) is None
    # What one caller had no patience for is no limit for the next.
    assert renderer.render(**parts, utterance="When " * 200).history_kept == 2
    assert renderer.render_inline(**parts, utterance="word " * 4000) is None
    # Known or not, many messages take their time.
    many = parts | {"history": [Message("user", "a")] * (INLINE_MESSAGES + 1)}
    assert renderer.render(**many, utterance="b").history_kept == INLINE_MESSAGES + 1
    assert renderer.render_inline(**many, utterance="b") is None


def test_threads_may_share_a_renderer(renderers):
    renderer = renderers["chatml"]
    jobs = [{"persona": f"Be {n}.", "utterance": f"ask {n} " * n} for n in range(40)]

    def one(job: dict[str, str]) -> list[int]:
        return renderer.render(runtime_text=None, history=(), **job).token_ids

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, jobs)) == [one(job) for job in jobs]


def test_a_folder_without_a_chat_template_is_refused(tmp_path):
    folder = templates.write("chatml", tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="expected a chat template"):
        PromptRenderer(folder, SMALL)


def test_counting_is_in_the_models_own_tokens(renderers, tmp_path: Path):
    renderer = renderers["chatml"]
    assert renderer.count("") == 0
    assert renderer.count("the cat") == len(renderer._tokens._tokenizer.encode("the cat", add_special_tokens=False).ids)


@pytest.mark.parametrize("name", sorted(templates.TEMPLATES))
def test_no_prompt_holds_a_token_above_the_highest(renderers, name):
    highest, text = renderers[name].highest_token()
    assert renderers[name]._tokens._tokenizer.id_to_token(highest) == text
    said = "".join(renderers[name]._tokens._tokenizer.get_vocab())[-200:]
    prompt = renderers[name].render(persona="Be Ada.", runtime_text=None, history=(), utterance=said)
    assert max(prompt.token_ids) <= highest


def test_a_control_token_of_no_prompt_counts_for_nothing_but_a_plain_word_does(tmp_path):
    folder = templates.write("chatml", tmp_path)
    before, _ = PromptRenderer(folder, SMALL).highest_token()
    tokenizer = load_fast_tokenizer(folder)
    tokenizer.add_tokens("<picture>", special_tokens=True)
    tokenizer.save_pretrained(folder)
    renderer = PromptRenderer(folder, SMALL)
    assert renderer.highest_token()[0] == before
    prompt = renderer.render(persona="<picture>", runtime_text=None, history=(), utterance="a<picture>b")
    assert max(prompt.token_ids) <= before
    tokenizer.add_tokens("plainword")  # one that a client may say
    tokenizer.save_pretrained(folder)
    assert PromptRenderer(folder, SMALL).highest_token()[1] == "plainword"
