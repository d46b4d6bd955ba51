"""A real browser without a screen: Chromium as the system has it, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str:
    """Return the browser's path: `CHROMIUM`, or what is installed. Skips the test where there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: install Debian's `chromium`, or name one in CHROMIUM")
    return found


@asynccontextmanager
async def page(**options: object) -> AsyncIterator[Page]:
    """Open an empty page; `options` are those of Playwright's `new_context`.

    The browser is as a user has it but for its sandbox, which needs rights that a container lacks. What the page throws
    fails the test at the end.
    """
    path = executable()
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            context = await browser.new_context(**options)  # type: ignore[arg-type]
            opened = await context.new_page()
            thrown: list[str] = []
            opened.on("pageerror", lambda error: thrown.append(str(error)))
            yield opened
            assert not thrown
        finally:
            await browser.close()
