"""The page in a real browser, against a server whose engine is scripted: as a person uses it, with the keyboard too."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.harness.browser import page
from tests.harness.scripted import KEY, Running, ScriptedClassifier, ScriptedEngine, serving
from tests.harness.server import free_port

REPLY = ("Sure", " thing", ", here", " it is.")


async def connect(tab: Page, running: Running, key: str = KEY) -> None:
    await tab.goto(f"http://127.0.0.1:{running.port}/")
    await tab.get_by_label("API key").fill(key)
    await tab.keyboard.press("Enter")


async def say(tab: Page, text: str) -> None:
    box = tab.get_by_label("Message", exact=True)
    await expect(box).to_be_enabled()
    await box.fill(text)
    await box.press("Enter")


async def frames(tab: Page) -> list[dict[str, object]]:
    return [json.loads(text[2:]) for text in await tab.locator("#frames li").all_text_contents()]


async def test_a_conversation() -> None:
    async with serving(ScriptedEngine(REPLY), ScriptedClassifier(), playground=True) as running, page() as tab:
        await connect(tab, running)
        await expect(tab.locator("#state")).to_have_text(re.compile("^connected"))
        await say(tab, "hello")
        await expect(tab.locator("#conversation .reply")).to_have_text("Sure thing, here it is.")
        await expect(tab.locator("#decision")).to_have_text("no")
        await expect(tab.locator("#ttft")).to_have_text(re.compile(r"^\d+\.\d ms$"))
        await expect(tab.locator("#cached")).to_have_text(re.compile(r"^3 of \d+$"))
        await expect(tab.locator("#chart rect")).to_have_count(1)
        start = next(frame for frame in await frames(tab) if frame["type"] == "start")
        assert "You are Mia" in str(start["persona_text"])
        assert KEY not in await tab.content()


async def test_a_decision_and_what_the_screen_showed() -> None:
    async with serving(ScriptedEngine(REPLY), ScriptedClassifier(), playground=True) as running, page() as tab:
        await connect(tab, running)
        await say(tab, "look at this")
        await expect(tab.locator("#decision")).to_have_text("yes: take_screenshot 0.900")
        await tab.get_by_label("What would it show?").fill("a cat")
        await tab.keyboard.press("Enter")
        await expect(tab.locator("#conversation .reply")).to_have_count(2)
        assert any(frame.get("analysis_text") == "a cat" for frame in await frames(tab))


async def test_sampling_that_was_moved_is_sent_and_nothing_else() -> None:
    engine = ScriptedEngine(REPLY)
    async with serving(engine, playground=True) as running, page() as tab:
        await connect(tab, running)
        await tab.locator("summary", has_text="Sampling").click()
        await tab.get_by_label("temperature").press("ArrowLeft")
        await say(tab, "hello")
        await expect(tab.locator("#conversation .reply")).to_have_count(1)
        start = next(frame for frame in await frames(tab) if frame["type"] == "start")
        assert start["sampling"] == {"temperature": 0.75, "sanitize_output": True}


@pytest.mark.parametrize("typing", [True, False])
async def test_barge_in(typing: bool) -> None:
    """Typing cancels at its first letter; without that, the next message speaks over the reply."""
    engine = ScriptedEngine(reply=("One", " two", " three"), pause=0.05)
    async with serving(engine, playground=True) as running, page() as tab:
        await connect(tab, running)
        await tab.get_by_label("typing interrupts").set_checked(typing)
        engine.reply = ["word "] * 400
        await say(tab, "go on for long")
        first = tab.locator("#conversation .reply").first
        await expect(first).to_contain_text("word")
        await tab.get_by_label("Message", exact=True).press("w")
        if typing:
            await expect(first).to_contain_text("interrupted")
        engine.reply = REPLY
        await say(tab, "wait")
        await expect(tab.locator("#conversation .reply").last).to_have_text("Sure thing, here it is.")
        await expect(first).to_contain_text("interrupted")
        ends = [frame for frame in await frames(tab) if frame["type"] == "done"]
        assert [end.get("cancelled", False) for end in ends] == [True, False]


@pytest.mark.parametrize("ahead", [True, False])
async def test_a_pause_in_typing_prepares_the_reply(ahead: bool) -> None:
    engine = ScriptedEngine(REPLY)
    async with serving(engine, playground=True) as running, page() as tab:
        await connect(tab, running)
        await tab.get_by_label("a pause prepares the reply").set_checked(ahead)
        box = tab.get_by_label("Message", exact=True)
        await expect(box).to_be_enabled()
        await box.press_sequentially("and now")
        prepared = tab.locator("#frames li.out", has_text='"prepare"')
        if ahead:
            await expect(prepared.filter(has_text='"and now"')).to_have_count(1)
        await box.press("Enter")
        await expect(tab.locator("#conversation .reply")).to_have_text("Sure thing, here it is.")
        await expect(tab.locator("#prepared")).to_have_text("yes" if ahead else "no")
        assert await prepared.count() > 0 if ahead else await prepared.count() == 0
        assert sum(words[-2:] == ["and", "now"] for words in engine.prompts) == 1, "it is not made again"


async def test_what_cannot_be_prepared_disturbs_nobody() -> None:
    async with serving(playground=True, ws_max_prepares_per_window=1) as running, page() as tab:
        await connect(tab, running)
        box = tab.get_by_label("Message", exact=True)
        await expect(box).to_be_enabled()
        for count, text in enumerate(("one", "two"), 1):
            await box.fill(text)
            await expect(tab.locator("#frames li.out", has_text='"prepare"')).to_have_count(count)
        await expect(tab.locator("#frames li.in", has_text="prepare_rate_limited")).to_have_count(1)
        await expect(tab.locator("#conversation li")).to_have_count(0)
        await box.press("Enter")
        await expect(tab.locator("#conversation .reply")).to_have_count(1)
        await expect(tab.locator("#prepared")).to_have_text("no")


async def test_escape_cancels() -> None:
    engine = ScriptedEngine(["word "] * 400, pause=0.05)
    async with serving(engine, playground=True) as running, page() as tab:
        await connect(tab, running)
        await say(tab, "hello")
        await expect(tab.locator("#conversation .reply")).to_contain_text("word")
        await tab.keyboard.press("Escape")
        await expect(tab.locator("#conversation .reply")).to_contain_text("interrupted")
        await expect(tab.get_by_role("button", name="Cancel")).to_be_disabled()


async def test_a_wrong_key_is_said_and_not_tried_again() -> None:
    async with serving(playground=True) as running, page() as tab:
        await connect(tab, running, "wrong")
        await expect(tab.locator("#state")).to_have_text(re.compile("wrong key"))
        await expect(tab.get_by_role("button", name="Connect", exact=True)).to_be_enabled()
        await expect(tab.get_by_label("Message", exact=True)).to_be_disabled()
        # The right one, with the keyboard alone: the focus is in its field.
        await tab.get_by_label("API key").fill(KEY)
        await tab.keyboard.press("Enter")
        await expect(tab.locator("#state")).to_have_text(re.compile("^connected"))


async def test_a_server_that_goes_away_and_comes_back() -> None:
    port = free_port()
    async with page() as tab:
        async with serving(playground=True, listens_on=port) as running:
            await connect(tab, running)
            await say(tab, "hello")
            await expect(tab.locator("#conversation .reply")).to_have_count(1)
        await expect(tab.locator("#state")).to_have_text(re.compile("trying again"))
        await expect(tab.get_by_label("Message", exact=True)).to_be_disabled()
        async with serving(playground=True, listens_on=port):
            await expect(tab.locator("#state")).to_have_text(re.compile("^connected"), timeout=30_000)
            await say(tab, "are you back?")
            await expect(tab.locator("#conversation .reply")).to_have_count(2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_phone(scheme: str) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    async with serving(playground=True) as running, page(**phone) as tab:
        await connect(tab, running)
        await say(tab, "hello " * 40)
        await expect(tab.locator("#conversation .reply")).to_have_count(1)
        assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ground, ink = await tab.evaluate(
            "[getComputedStyle(document.documentElement).backgroundColor, getComputedStyle(document.body).color]"
        )
        light, dark = sum(numbers(ground)), sum(numbers(ink))
        assert light > dark if scheme == "light" else light < dark


@pytest.mark.parametrize("width", [320, 375])
async def test_what_a_screenshot_shows_can_be_read_while_it_is_typed(width: int) -> None:
    classifier = ScriptedClassifier()
    phone = {"viewport": {"width": width, "height": 640}, "has_touch": True, "is_mobile": True}
    async with serving(classifier=classifier, playground=True) as running, page(**phone) as tab:
        await connect(tab, running)
        await say(tab, "look at this")
        await expect(tab.locator("#followup")).to_be_visible()
        box = await tab.locator("#analysis").bounding_box()
        assert box is not None
        assert box["width"] > width / 2
        await tab.locator("summary", has_text="Sampling").click()
        words, name = tab.locator("label.check span"), tab.locator("label.check code")
        outer, inner = await words.bounding_box(), await name.bounding_box()
        assert outer is not None
        assert inner is not None
        assert inner["x"] + inner["width"] <= outer["x"] + outer["width"] + 1
        assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_a_key_that_was_taken_away_is_called_so(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"acme: {KEY}\n")
    async with serving(text_api_key=None, text_api_key_file=keys, playground=True) as running, page() as tab:
        await connect(tab, running)
        await expect(tab.locator("#state")).to_have_text(re.compile("^connected"))
        keys.write_text("acme: another\n")
        running.service.reload_keys()
        await expect(tab.locator("#state")).to_have_text("closed: the key was taken away")


def numbers(colour: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", colour)[:3]]
