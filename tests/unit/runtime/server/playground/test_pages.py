"""The page's files as they are served: off by default, self-contained, and bound by their headers."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import httpx
import pytest

from runtime.server.playground import pages
from tests.harness.scripted import serving


async def get(port: int, path: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"http://127.0.0.1:{port}{path}")


async def test_it_is_off_by_default() -> None:
    async with serving() as running:
        for path in pages.FILES:
            assert (await get(running.port, path)).status_code == 404


@pytest.mark.parametrize("path", pages.FILES)
async def test_files_come_with_headers_that_bind_them(path: str) -> None:
    async with serving(playground=True) as running:
        answer = await get(running.port, path)
        assert answer.status_code == 200
        assert answer.text == (pages.FOLDER / pages.FILES[path][0]).read_text("utf-8")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "etag" not in answer.headers


async def test_its_files_hold_no_key_and_nothing_else_is_served() -> None:
    async with serving(playground=True) as running:
        for path in ("/index.html", "/pages.py", "/__init__.py", "/playground", "/../settings.py", "//etc/passwd"):
            assert (await get(running.port, path)).status_code == 404


def test_the_page_needs_nothing_from_elsewhere() -> None:
    for name, _ in pages.FILES.values():
        text = (pages.FOLDER / name).read_text("utf-8")
        outside = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text)) - {"http://www.w3.org/2000/svg"}
        assert not outside, name


class Controls(HTMLParser):
    """What a page has: the ids of its controls, and what its labels are for."""

    def __init__(self) -> None:
        super().__init__()
        self.controls: set[str] = set()
        self.labelled: set[str] = set()
        self.inside_label = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        assert not [name for name in found if name.startswith("on") or name == "style"], "the policy forbids it"
        if tag == "label":
            self.inside_label = True
            self.labelled.add(found.get("for") or "")
        elif tag in {"input", "textarea"}:
            self.controls.add(found["id"] or "")
            if self.inside_label:
                self.labelled.add(found["id"] or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "label":
            self.inside_label = False


def test_every_control_has_a_label() -> None:
    parser = Controls()
    parser.feed((pages.FOLDER / "index.html").read_text("utf-8"))
    assert parser.controls
    assert parser.controls <= parser.labelled
