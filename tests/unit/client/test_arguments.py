"""What a caller says that no argument is: refused by name, before anything is said or changed."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import yap_client
from tests.harness.scripted import KEY, REPLY, serving
from yap_client import Facts, Message, Talk, connect, connect_sync, sync
from yap_client.arguments import check_facts
from yap_client.session import Session, read_messages

CLIENT = Path(__file__).parents[3] / "client"
SAID = "".join(REPLY)
# What was meant; none where nothing is near.
WRONG: dict[str, str | None] = {
    "personna": "persona",
    "persona_text": "persona",
    "persona_style": "style",
    "type": None,
    "system": None,
    "session_id": None,
    "request_id": None,
    "user_utterance": None,
    "temperature": None,
    "": None,
}
HISTORIES: list[Any] = [
    [{"role": "bot", "content": "x"}],
    [{"role": "user"}],
    [{"content": "x"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": b"x"}],
    [("user", "x")],
    ["x"],
    [None],
    [Message("bot", "x")],  # type: ignore[arg-type]
    [Message("user", None)],  # type: ignore[arg-type]
    [Message("user", "fine"), {"role": "system", "content": "x" * 5000}],
    "user: x",
    {"role": "user", "content": "x"},
    5,
]


@pytest.mark.parametrize("name", WRONG)
async def test_a_name_that_is_none_is_refused_and_nothing_is_said(name: str) -> None:
    unknown: Any = {name: "x"}
    async with serving() as running, connect(running.url, KEY, session="s1") as talk:
        assert await talk.say("one").reply() == SAID
        for call in (talk.say, talk.prepare):
            with pytest.raises(TypeError, match=rf"^{call.__name__}\(\) .*argument '{name}'"):
                call("two", heard=1, history=[], gender="woman", **unknown)
        for connecting in (connect, connect_sync):
            with pytest.raises(TypeError, match=rf"^connect\(\) .*argument '{name}'"):
                connecting(running.url, KEY, **unknown)

        def script() -> None:
            with connect_sync(running.url, KEY) as talk:
                for call in (talk.say, talk.prepare):
                    with pytest.raises(TypeError, match=rf"^{call.__name__}\(\) .*argument '{name}'"):
                        call("two", **unknown)
                assert talk.say("one").reply() == SAID

        await asyncio.to_thread(script)
        assert await talk.say("two").reply() == SAID
        assert [message.content for message in talk.history] == ["one", SAID, "two", SAID]
        assert talk._session.due() == {}


@pytest.mark.parametrize(("name", "meant"), WRONG.items())
def test_the_name_that_was_meant_is_said(name: str, meant: str | None) -> None:
    with pytest.raises(TypeError) as refused:
        check_facts("say", {name: "x"}, ["heard", "history"])
    assert (f"did you mean '{meant}'?" if meant else "expected one of check_screen_prefix, gender, heard") in str(
        refused.value
    )


def test_a_name_near_another_argument_of_the_same_call_is_told_too() -> None:
    wrong: Any = {"session_id": "x"}
    with pytest.raises(TypeError, match="did you mean 'session'"):
        connect("ws://127.0.0.1:1/ws", KEY, **wrong)


@given(st.text())
def test_only_what_a_session_keeps_comes_to_a_session(name: str) -> None:
    given: Any = {name: "x"}
    if name in Facts.__annotations__:
        Session(None, given, None, None)
    else:
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            Session(None, given, None, None)


@pytest.mark.parametrize("name", Facts.__annotations__)
def test_every_fact_is_a_text(name: str) -> None:
    for wrong in (5, b"x", ["x"], object()):
        given: Any = {name: wrong}
        with pytest.raises(TypeError, match=f"{name}: expected a text, found {type(wrong).__name__}"):
            connect("ws://127.0.0.1:1/ws", KEY, **given)
    nothing: Any = {name: None}
    connect("ws://127.0.0.1:1/ws", KEY, **nothing)


@pytest.mark.parametrize("name", ["url", "key", "session"])
def test_an_address_a_key_and_a_name_are_texts(name: str) -> None:
    given: Any = {"url": "ws://127.0.0.1:1/ws", name: b"x"}
    with pytest.raises(TypeError, match=f"{name}: expected a text, found bytes"):
        connect(**given)


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: repr(history)[:40])
async def test_a_history_that_is_none_is_refused_in_one_line_and_nothing_is_changed(history: Any) -> None:
    async with serving() as running, connect(running.url, KEY, session="s1", history=[]) as talk:
        assert await talk.say("one").reply() == SAID
        for call in (
            lambda: talk.say("two", heard=1, persona="You are Ann.", history=history),
            lambda: talk.prepare("two", heard=1, history=history),
            lambda: talk.set_history(history),
            lambda: connect(running.url, KEY, history=history),
            lambda: connect_sync(running.url, KEY, history=history),
        ):
            with pytest.raises(TypeError, match=r"^history(\[\d\])?: expected .*, found ") as refused:
                call()
            assert len(str(refused.value)) < 400
            assert "\n" not in str(refused.value)
        with pytest.raises(TypeError, match=r"^history"):
            await talk.warm(history=history)
        assert await talk.say("two").reply() == SAID
        assert [message.content for message in talk.history] == ["one", SAID, "two", SAID]
        assert talk._session.due() == {}


def test_a_history_may_come_one_after_the_other() -> None:
    item = {"role": "user", "content": "x", "name": "more"}
    assert read_messages(each for each in (item, Message("assistant", "y"))) == [
        Message("user", "x"),
        Message("assistant", "y"),
    ]


def callables() -> Iterator[tuple[str, FunctionType]]:
    """Every function that a user of the package may call, with its name."""
    for name in yap_client.__all__:
        public = getattr(yap_client, name)
        if isinstance(public, FunctionType):
            yield name, public
        elif isinstance(public, type):
            for method, member in vars(public).items():
                for each in (member, getattr(member, "fget", None), getattr(member, "__func__", None)):
                    if isinstance(each, FunctionType):
                        yield f"{name}.{method}", each


def check_hints() -> None:
    """Read every hint of the package, as programs do that show or check them."""
    found = dict(callables())
    assert {"connect", "connect_sync", "Talk.say", "SyncTalk.prepare", "Turn.reply", "Talk.history"} <= found.keys()
    for each in found.values():
        typing.get_type_hints(each)
        inspect.signature(each, eval_str=True)
    for name in yap_client.__all__:
        if isinstance(getattr(yap_client, name), type):
            typing.get_type_hints(getattr(yap_client, name))
    for options in (sync.Options, sync.Ahead, sync.Words):
        assert typing.get_type_hints(options).keys() > Facts.__annotations__.keys()


def test_every_hint_can_be_read_at_runtime() -> None:
    check_hints()
    assert "Facts" in str(typing.get_type_hints(connect)["facts"])
    assert "Words" in str(typing.get_type_hints(yap_client.SyncTalk.say)["words"])


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12)])
@pytest.mark.parametrize("extensions", [True, False])
def test_they_can_be_read_with_and_without_the_extensions_of_typing(version: tuple[int, int], extensions: bool) -> None:
    source = "\n".join(
        (
            "import sys",
            f"sys.modules |= {{}} if {extensions} else {{'typing_extensions': None}}",
            f"sys.version_info = {version}" if version[0] == 3 and version < sys.version_info[:2] else "",
            "from yap_client import connect, connect_sync, SyncTalk, Talk",
            "from typing import get_type_hints",
            "print(*[get_type_hints(each) for each in (connect, connect_sync, Talk.say, SyncTalk.prepare)])",
        )
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=CLIENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Facts" in done.stdout


def test_what_the_script_takes_is_what_the_client_takes() -> None:
    """`Options`, `Words` and `Ahead` name again what the functions name."""
    for function, options in ((connect, sync.Options), (Talk.say, sync.Words), (Talk.prepare, sync.Ahead)):
        own = {name for name, each in inspect.signature(function).parameters.items() if each.kind is each.KEYWORD_ONLY}
        assert own | Facts.__annotations__.keys() == options.__annotations__.keys()
