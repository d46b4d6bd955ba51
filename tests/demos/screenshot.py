"""Draw the picture of the playground in `docs/`: `python -m tests.demos.screenshot [FILE]`.

A conversation with a scripted engine, so that the picture is the same each time it is made.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from playwright.async_api import expect

from tests.client.ending import ending
from tests.harness.browser import page
from tests.harness.scripted import KEY, ScriptedClassifier, ScriptedEngine, serving

PICTURE = Path(__file__).parents[2] / "docs/pictures/playground.png"
SAID = (
    ("Hi Mia! What do you do on a rainy day?", "I put the kettle on, open a window, and listen. What about you?"),
    ("I read. Can you look at this page?", "Of course, show me, and tell me which line made you stop."),
    ("Wait, before that: tea or coffee?", "Tea. Always tea."),
)


async def draw(picture: Path) -> None:
    """Hold the conversation, and write the picture."""
    engine = ScriptedEngine(pause=0.012)
    async with (
        serving(engine, ScriptedClassifier(), playground=True) as running,
        page(viewport={"width": 1280, "height": 800}) as tab,
    ):
        await tab.goto(f"http://127.0.0.1:{running.port}/")
        await tab.get_by_label("API key").fill(KEY)
        await tab.keyboard.press("Enter")
        box = tab.get_by_label("Message", exact=True)
        for number, (utterance, reply) in enumerate(SAID, 1):
            engine.reply = [f"{word} " for word in reply.split()]
            await expect(box).to_be_enabled()
            await box.fill(utterance)
            await box.press("Enter")
            await expect(tab.locator("#chart rect")).to_have_count(number)
        await tab.get_by_text("Sampling", exact=True).click()
        picture.parent.mkdir(parents=True, exist_ok=True)
        await tab.screenshot(path=picture)


if __name__ == "__main__":
    with ending():
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("picture", type=Path, nargs="?", default=PICTURE, help="the file to write")
        asyncio.run(draw(parser.parse_args().picture))
