"""`yap_client.pipecat` in real pipelines, against a server in a process of its own."""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import replace

import pytest
from pipecat.frames.frames import (
    Frame,
    FunctionCallResultFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesUpdateFrame,
    LLMRunFrame,
    LLMTextFrame,
    LLMThoughtTextFrame,
    LLMUpdateSettingsFrame,
)
from pipecat.metrics.metrics import LLMUsageMetricsData, TTFBMetricsData
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams
from pipecat.utils.errors import ErrorCategory

from tests.frameworks import readme
from tests.frameworks.pipecat_pipeline import Speaker, conversing, spoken
from tests.frameworks.scripted_process import KEY, ScriptedProcess, State
from yap_client import Backoff
from yap_client.pipecat import YapLLMService

PERSONA = "You are Mia."
WORD = re.compile(r"[Tt](\d+)-\d+")


class Service(YapLLMService):
    """The service, which notes each prompt that it was asked to answer."""

    def __init__(self, scripted: ScriptedProcess, **values) -> None:
        settings = {"system_instruction": PERSONA, **values.pop("settings", {})}
        super().__init__(**{"url": scripted.url, "api_key": KEY, **values}, settings=YapLLMService.Settings(**settings))
        self.asked: list[str] = []

    async def _process_context(self, context: LLMContext) -> None:
        self.asked.append(prompt(context))
        await super()._process_context(context)


def prompt(context: LLMContext) -> str:
    """The prompt that the server is to make of a context."""
    said = [f"[{each['role']}] {each['content']}" for each in context.messages if each.get("content")]
    if said[-1].startswith("[assistant]"):
        said[-2:] = reversed(said[-2:])  # the reply that was interrupted, written down late
    return " ".join(" ".join([f"[system] {PERSONA}", *said]).split())


def ended(frames: list[Frame]) -> bool:
    return any(isinstance(frame, LLMFullResponseEndFrame) for frame in frames)


async def test_persona_goes_once_and_history_never(scripted: ScriptedProcess) -> None:
    llm = Service(scripted, settings={"temperature": 0.5})
    async with conversing(llm) as talk:
        for word in ("one", "two", "three"):
            assert await talk.ask(f"{word} is said") == " ".join(f"{word}-{n}" for n in range(12)).capitalize()
        assert talk.errors.frames == []
    state = scripted.state()
    assert state.starts == ["persona", "", ""]
    assert state.prompts == llm.asked
    assert state.connections == state.held == 0


async def test_usage_and_the_time_to_the_first_token_reach_the_metrics(scripted: ScriptedProcess) -> None:
    async with conversing(Service(scripted)) as talk:
        assert await talk.ask("think it over") == "Spoken-0 spoken-1"
        metrics = talk.metrics()
        assert not any(isinstance(frame, LLMThoughtTextFrame) for frame in talk.recorder.frames)
    (usage,) = [each.value for each in metrics if isinstance(each, LLMUsageMetricsData)]
    assert usage.prompt_tokens == len(scripted.state().prompts[0].split())
    assert usage.cache_read_input_tokens == 3
    assert usage.reasoning_tokens > 0
    assert usage.completion_tokens == usage.reasoning_tokens + 2
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert [each for each in metrics if isinstance(each, TTFBMetricsData) and each.value > 0]


async def test_nothing_of_a_turn_follows_its_interruption_in_200_turns(scripted: ScriptedProcess) -> None:
    draw = random.Random(19)
    llm = Service(scripted)
    async with conversing(llm) as talk:
        for turn in range(200):
            await talk.speak(f"t{turn} is said", hurried=draw.random() < 0.2)
            pieces = draw.choice((0, 0, 1, 2, 5, 11, 99))
            if pieces:
                word = re.compile(rf"[Tt]{turn}-\d+")
                await talk.until(
                    lambda frames: talk.replied() or len(word.findall(spoken(frames))) >= pieces  # noqa: B023
                )
            else:
                await asyncio.sleep(draw.choice((0, 0, 0.002, 0.005)))
        last = await talk.ask("finally is said")
        frames = talk.recorder.frames
        assert talk.errors.frames == []
    assert last.endswith(" ".join(f"finally-{n}" for n in range(12)).capitalize())

    turn, open_replies, words = -1, 0, 0
    for frame in frames:
        if isinstance(frame, InterruptionFrame):
            turn += 1
        elif isinstance(frame, LLMFullResponseStartFrame):
            open_replies += 1
        elif isinstance(frame, LLMFullResponseEndFrame):
            open_replies -= 1
        elif isinstance(frame, LLMTextFrame):
            found = [int(number) for number in WORD.findall(frame.text)]
            assert set(found) <= {turn}
            words += len(found)
        assert open_replies in (0, 1)
    assert turn == 200
    assert words > 200

    # What the server answered was the framework's own context each time, however the turn before it had ended.
    state = scripted.state()
    missing = list(llm.asked)
    for asked in state.prompts:
        while missing and missing.pop(0) != asked:
            pass
        assert missing or asked == llm.asked[-1], asked[-200:]
    assert state.prompts[-1] == llm.asked[-1]
    assert state.aborts > 0
    assert state.connections == state.held == 0
    # A whole history goes only behind a turn that was cancelled before its first word, or written down elsewhere.
    assert 0 < sum("history" in each for each in state.starts) < 200
    assert sum("persona" in each for each in state.starts) == 1


async def test_an_interruption_ends_the_turn_in_the_engine(scripted: ScriptedProcess) -> None:
    async with conversing(Service(scripted)) as talk:
        aborts = scripted.state().aborts
        await talk.speak("long is said")
        await talk.until(lambda frames: len(spoken(frames)) > 50)
        assert scripted.state().held == 1
        await talk.worker.queue_frame(InterruptionFrame())
        assert (await scripted.settled()).aborts == aborts + 1


async def test_the_server_learns_what_was_heard(scripted: ScriptedProcess) -> None:
    llm = Service(scripted)
    speaker = Speaker(3)
    async with conversing(llm, None, speaker) as talk:
        assert len((await talk.ask("one is said")).split()) == 12
        await talk.until_noted(3)
        speaker.words = 99
        await talk.ask("two is said")
        await talk.ask("three is said")
        assert talk.said()[1] == ("assistant", "One-0 one-1 one-2")
    state = scripted.state()
    assert state.prompts == llm.asked
    assert state.prompts[1] == f"[system] {PERSONA} [user] one is said [assistant] One-0 one-1 one-2 [user] two is said"
    assert state.starts == ["persona", "", ""]


async def test_a_tool_decision_becomes_a_function_call_and_its_result_a_followup(scripted: ScriptedProcess) -> None:
    calls: list[str] = []

    async def take_screenshot(params: FunctionCallParams) -> None:
        """Look at the screen."""
        calls.append(params.function_name)
        await params.result_callback("cat")

    llm = Service(scripted, screen_checked_prefix="(saw)")
    async with conversing(llm, LLMContext(tools=[take_screenshot])) as talk:
        text = await talk.ask("take_screenshot now", replies=2)
        assert text.startswith("take_screenshot-0 ")
        assert text.endswith('cat"-11')
        await talk.ask("and then")
        assert talk.errors.frames == []
    state = scripted.state()
    assert calls == ["take_screenshot"]
    assert len(state.starts) == 2
    assert "history" not in " ".join(state.starts)
    # The first one was begun for the likelier decision.
    assert state.prompts[1].endswith("[user] (look) take_screenshot now")
    assert state.prompts[2].endswith('[user] (saw) "cat"')
    assert re.search(
        r'take_screenshot-11 \[user\] \(saw\) "cat" \[assistant\] .*-11 \[user\] and then$', state.prompts[3]
    )


async def test_a_tool_that_the_context_does_not_offer_is_not_called(scripted: ScriptedProcess) -> None:
    async with conversing(Service(scripted)) as talk:
        assert (await talk.ask("take_screenshot now")).startswith("take_screenshot-0")
        assert not any(isinstance(frame, FunctionCallResultFrame) for frame in talk.recorder.frames)
        assert talk.errors.frames == []


async def test_a_failed_turn_is_an_error_and_the_next_one_goes_on(scripted: ScriptedProcess) -> None:
    async with conversing(Service(scripted)) as talk:
        assert await talk.ask("fail please") == ""
        assert await talk.ask("one is said")
        (error,) = talk.errors.frames
        assert error.category is ErrorCategory.SERVER
        assert "generation_failed" in error.error
        assert "scripted" not in error.error
        assert talk.llm.is_usable
    prompts = scripted.state().prompts
    assert prompts[-1].endswith("[user] fail please [user] one is said")


@pytest.mark.parametrize(
    ("settings", "category"),
    [({"temperature": 9.0}, ErrorCategory.INVALID_REQUEST), ({"max_tokens": 100_000}, ErrorCategory.INVALID_REQUEST)],
)
async def test_what_the_server_refuses_is_an_error(scripted: ScriptedProcess, settings, category) -> None:
    async with conversing(Service(scripted, settings=settings)) as talk:
        await talk.ask("one is said")
        (error,) = talk.errors.frames
        assert error.category is category
        assert next(iter(settings)) in error.error


async def test_a_wrong_key_makes_the_service_unusable(scripted: ScriptedProcess) -> None:
    async with conversing(Service(scripted, api_key="wrong")) as talk:
        await asyncio.sleep(0)
        assert not talk.llm.is_usable
        assert talk.errors.frames[0].category is ErrorCategory.AUTHENTICATION


async def test_a_server_that_is_not_there_is_told(scripted: ScriptedProcess) -> None:
    llm = Service(scripted, url="ws://127.0.0.1:9/ws", reconnect_backoff_min_wait=0.01, reconnect_backoff_max_wait=0.01)
    told: list[str] = []
    llm.add_event_handler("on_connection_error", lambda _, error: told.append(error))
    async with conversing(llm) as talk:
        assert {frame.category for frame in talk.errors.frames} == {ErrorCategory.CONNECTIVITY}
    assert told


async def test_a_lost_connection_comes_back_and_nothing_is_said_twice(scripted: ScriptedProcess) -> None:
    llm = Service(scripted, connect_options={"backoff": Backoff(first=0.01)})
    async with conversing(llm) as talk:
        await talk.ask("one is said")
        scripted.drop()
        assert await talk.ask("two is said")
        await talk.speak("long is said")
        await talk.until(lambda frames: len(spoken(frames)) > 50)
        scripted.drop()
        await talk.until(ended)
        (error,) = talk.errors.frames
        assert error.category is ErrorCategory.CONNECTIVITY
        assert await talk.ask("three is said")
    state = scripted.state()
    assert state.prompts == llm.asked


async def test_a_client_that_is_not_to_come_back_is_replaced_once_it_is_lost(scripted: ScriptedProcess) -> None:
    llm = Service(scripted, connect_options={"backoff": None})
    async with conversing(llm) as talk:
        await talk.ask("one is said")
        assert llm._conversation is not None
        lost = llm._conversation.talk
        scripted.drop()
        while lost.gone is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert await talk.ask("two is said")
        assert await talk.ask("three is said")
    assert scripted.state().prompts == llm.asked


async def test_what_the_application_changes_reaches_the_server(scripted: ScriptedProcess) -> None:
    llm = Service(scripted)
    async with conversing(llm) as talk:
        await talk.ask("one is said")
        other = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Well met."}]
        await talk.worker.queue_frame(LLMMessagesUpdateFrame(list(other)))
        await talk.ask("two is said")
        await talk.worker.queue_frame(
            LLMUpdateSettingsFrame(delta=YapLLMService.Settings(system_instruction="You are Max.", top_k=5))
        )
        await talk.ask("three is said")
        await talk.worker.queue_frame(LLMUpdateSettingsFrame(delta=YapLLMService.Settings(top_k=None)))
        talk.context.add_message({"role": "developer", "content": "say hello"})
        await talk.worker.queue_frame(LLMRunFrame())
        await talk.until(ended)
    state = scripted.state()
    # What was set of the sampling cannot be taken back in a session: the last one is another.
    assert state.starts == ["persona", "history", "persona", "persona history"]
    assert state.prompts[1] == f"[system] {PERSONA} [user] hello [assistant] Well met. [user] two is said"
    assert state.prompts[2].startswith("[system] You are Max. [user] hello")
    assert state.prompts[3].endswith("[user] say hello")


async def test_a_picture_is_refused_by_name_and_the_conversation_goes_on(scripted: ScriptedProcess) -> None:
    async with conversing(Service(scripted)) as talk:
        picture = LLMContext.create_image_url_message(url="data:image/png;base64,AAAA", text="what is it")
        await talk.worker.queue_frame(LLMMessagesUpdateFrame([picture], run_llm=True))
        await talk.until(ended)
        (error,) = talk.errors.frames
        assert error.category is ErrorCategory.APPLICATION
        assert "image_url" in error.error
        await talk.worker.queue_frame(LLMMessagesUpdateFrame([]))
        assert await talk.ask("one is said")


async def test_an_inference_beside_the_conversation_does_not_touch_it(scripted: ScriptedProcess) -> None:
    llm = Service(scripted)
    async with conversing(llm) as talk:
        await talk.ask("one is said")
        context = LLMContext([{"role": "user", "content": "aside please"}])
        assert (await llm.run_inference(context, max_tokens=9_999, system_instruction="Sum up.")) == " ".join(
            f"aside-{n}" for n in range(12)
        ).capitalize()
        await talk.ask("two is said")
    state = scripted.state()
    assert state.prompts[1] == "[system] Sum up. [user] aside please"
    assert [each for each in state.prompts if "aside" not in each] == llm.asked


def test_the_example_in_the_readme_prints_a_reply(scripted: ScriptedProcess) -> None:
    assert readme.run("Pipecat", scripted).startswith("Hello!-0 Hello!-1")


def whole(word: str) -> str:
    return " ".join(f"{word}-{n}" for n in range(12)).capitalize()


async def generated(scripted: ScriptedProcess, count: int) -> State:
    """The state once so many more prompts were given to the engine."""
    state = scripted.state()
    prompts, starts = state.prompts, state.starts
    while len(prompts) < count:
        await asyncio.sleep(0.01)
        state = scripted.state()
        prompts, starts = [*prompts, *state.prompts], [*starts, *state.starts]
    return replace(state, prompts=prompts, starts=starts)


async def test_what_is_guessed_is_prepared_and_released_when_the_turn_ends(scripted: ScriptedProcess) -> None:
    llm = Service(scripted)
    async with conversing(llm, eager=True) as talk:
        for turn, word in enumerate(("one", "two", "three")):
            await talk.begin_to_speak()
            await talk.guess(f"{word} is said")
            state = await generated(scripted, 1)
            assert state.prompts == [llm.asked[turn]], "it is generated while the user may still go on"
            assert not state.starts, "and is no turn yet"
            await talk.stop_speaking(f"{word} is said")
            assert spoken(await talk.until(lambda _: talk.replied())) == whole(word)
            state = scripted.state()
            assert not state.prompts, "nothing was generated twice"
            assert state.starts == ["persona" if turn == 0 else ""]
        assert talk.errors.frames == []
    assert scripted.state().held == 0


async def test_a_guess_that_was_wrong_leaves_nothing(scripted: ScriptedProcess) -> None:
    llm = Service(scripted)
    async with conversing(llm, eager=True) as talk:
        assert await talk.ask("zero is said") == whole("zero")
        await generated(scripted, 1)
        for word, withdrawn in (("one", True), ("two", False), ("three", True)):
            await talk.begin_to_speak()
            await talk.guess(f"{word} is")
            await generated(scripted, 1)
            if withdrawn:
                await talk.withdraw()
            await talk.stop_speaking(f"{word} is said")
            assert spoken(await talk.until(lambda _: talk.replied())) == whole(word)
            state = scripted.state()
            assert state.prompts == [llm.asked[-1]]
            assert state.starts == [""], "the server had what was said before, and nothing of the guess"
        assert talk.errors.frames == []


async def test_a_guess_that_is_never_settled_holds_nothing_up(scripted: ScriptedProcess, monkeypatch) -> None:
    monkeypatch.setattr("yap_client.pipecat.HOLD_S", 0.05)
    llm = Service(scripted)
    async with conversing(llm, eager=True) as talk:
        await talk.begin_to_speak()
        await talk.guess("one is said")
        state = await generated(scripted, 1)
        while "persona" not in state.starts:
            await asyncio.sleep(0.01)
            state = scripted.state()
        assert not any(isinstance(frame, LLMTextFrame) for frame in talk.recorder.frames)
    assert (await scripted.settled()).connections == 0


async def test_a_tool_that_a_guess_asks_for_is_called_when_the_turn_has_ended(scripted: ScriptedProcess) -> None:
    calls: list[str] = []

    async def look(params: FunctionCallParams) -> None:
        calls.append(params.function_name)
        await params.result_callback("cat")

    llm = Service(scripted)
    llm.register_function("take_screenshot", look)
    async with conversing(llm, eager=True) as talk:
        await talk.begin_to_speak()
        await talk.guess("take_screenshot now")
        await generated(scripted, 1)
        assert not calls
        await talk.stop_speaking("take_screenshot now")
        said = spoken(await talk.until(lambda _: talk.replied(2)))
    assert calls == ["take_screenshot"]
    assert '-11"Cat"-0' in said
    assert len(scripted.state().prompts) == 1, "the answer to what was seen alone: the rest was ready"


def test_an_option_that_is_none_is_told_where_it_was_given() -> None:
    with pytest.raises(TypeError, match="did you mean 'persona'"):
        YapLLMService(url="ws://127.0.0.1:9/ws", connect_options={"personna": PERSONA})
