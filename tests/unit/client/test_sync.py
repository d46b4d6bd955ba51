"""The client for scripts without asyncio, in a thread and in a process of its own."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
import warnings
from pathlib import Path

import pytest

from tests.harness.scripted import KEY, REPLY, ScriptedClassifier, ScriptedEngine, serving
from tests.harness.waiting import all_gone, eventually
from yap_client import AuthenticationError, ClosedError, Done, RefusedError, SyncTurn, Token, YapError, connect_sync
from yap_client.sync import LoopThread

CLIENT = Path(__file__).parents[3] / "client"
LONG = ["word "] * 500
SAID = "".join(REPLY)

# Whoever is started in the background by a shell takes no SIGINT, and neither do those that it starts.
INTERRUPTED = """
import signal, sys
from yap_client.sync import connect

signal.signal(signal.SIGINT, signal.default_int_handler)

with connect(sys.argv[1], sys.argv[2]) as talk:
    try:
        for event in talk.say("one"):
            print(type(event).__name__, flush=True)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        sys.stdin.readline()
    print(talk.say("two").reply(), flush=True)
"""


async def test_a_script_converses() -> None:
    def converse(url: str) -> tuple[list[str], int, str, float]:
        with connect_sync(url, KEY, persona="You are Mia.", session="s1") as talk:
            talk.warm()
            kinds = [type(event).__name__ for event in talk.say("look")]
            answer = talk.heard("Sure")
            assert talk.set_persona("You are Ann.") is not None
            reply = talk.followup("a cat").reply()
            assert talk.prepare("and now")
            assert talk.history[1].content == "Sure"
            assert answer is not None
            return kinds, answer.chars or 0, reply, talk.ping()

    async with serving(classifier=ScriptedClassifier()) as running:
        kinds, chars, reply, seconds = await asyncio.to_thread(converse, running.url)
        await all_gone(running)
    assert kinds == ["Ack", "ToolCall", *["Token"] * 4, "Final", "Done"]
    assert (chars, reply) == (4, SAID)
    assert seconds >= 0
    assert not [thread for thread in threading.enumerate() if thread.name == "yap-client"]


async def test_who_leaves_the_loop_or_says_the_next_thing_ends_the_turn_on_the_server() -> None:
    engine = ScriptedEngine(reply=LONG, pause=0.005)

    def converse(url: str) -> tuple[list[object], str]:
        with connect_sync(url, KEY) as talk:
            for event in talk.say("one"):
                if isinstance(event, Token):
                    break
            old = talk.say("two")
            for event in old:
                if isinstance(event, Token):
                    engine.reply = REPLY
                    new = talk.say("three")
            return [old.ended], new.reply()

    async with serving(engine) as running:
        ends, reply = await asyncio.to_thread(converse, running.url)
        await all_gone(running)
        assert engine.aborts == 2
    (end,) = ends
    assert isinstance(end, Done)
    assert end.cancelled
    assert reply == SAID


async def test_errors_reach_the_script_and_no_thread_stays() -> None:
    def refused(url: str) -> None:
        with pytest.raises(AuthenticationError), connect_sync(url, "wrong"):
            pass
        with connect_sync(url, KEY) as talk, pytest.raises(RefusedError):
            talk.say("one", sampling={"top_p": 7}).reply()
        with pytest.raises(ClosedError):
            talk.say("two")

    async with serving() as running:
        await asyncio.to_thread(refused, running.url)
    assert not [thread for thread in threading.enumerate() if thread.name == "yap-client"]


async def said(process: asyncio.subprocess.Process, line: bytes) -> None:
    """Read until a process has printed a line."""
    assert process.stdout is not None
    while (read := await asyncio.wait_for(process.stdout.readline(), 60)) != line:
        assert read, f"it ended without saying {line!r}"


async def test_ctrl_c_ends_the_turn_on_the_server_and_the_script_goes_on() -> None:
    engine = ScriptedEngine(reply=LONG, pause=0.01)
    async with serving(engine) as running:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", INTERRUPTED, running.url, KEY),
            cwd=CLIENT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await said(process, b"Token\n")
        process.send_signal(signal.SIGINT)
        await said(process, b"stopped\n")
        await eventually(lambda: not engine.held)
        engine.reply = REPLY
        out, error = await asyncio.wait_for(process.communicate(b"\n"), 30)
    assert (out.decode(), error.decode(), process.returncode) == (f"{SAID}\n", "", 0)


async def test_a_turn_that_is_kept_past_the_end_says_that_the_client_is_closed() -> None:
    def keep(url: str) -> None:
        with connect_sync(url, KEY) as talk:
            whole, taken, running = talk.say("one"), talk.say("two"), None
            taken.reply()
            running = talk.say("three")
            begun = iter(talk.say("four"))
            next(begun)
        for turn in (whole, taken, running):
            for use in (turn.reply, lambda turn=turn: next(iter(turn))):
                with pytest.raises(ClosedError, match="closed"):
                    use()
            turn.cancel()
        with pytest.raises(ClosedError, match="closed"):
            next(begun)
        assert taken.text == SAID
        for call in (talk.cancel, talk.ping, talk.warm, talk.heard, lambda: talk.set_persona("You are Mia.")):
            with pytest.raises(ClosedError, match="closed"):
                call()
        talk.close()

    async with serving() as running:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await asyncio.to_thread(keep, running.url)
            gc.collect()
        await all_gone(running)


async def test_who_waits_in_another_thread_while_the_client_is_closed_waits_no_longer() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())

    def race(url: str) -> list[str]:
        told: list[str] = []

        def wait(turn: SyncTurn) -> None:
            try:
                turn.reply()
            except YapError as error:
                told.append(type(error).__name__)

        with connect_sync(url, KEY) as talk:
            threads = [threading.Thread(target=wait, args=(talk.say(str(number)),)) for number in range(4)]
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        return told

    async with serving(engine) as running:
        assert len(await asyncio.to_thread(race, running.url)) == 4
        await all_gone(running)


def test_nothing_waits_for_a_thread_that_ends() -> None:
    """Whatever comes while it ends is run, or is told so."""
    for _ in range(20):
        thread, told = LoopThread(), []

        def ask(thread: LoopThread = thread, told: list[object] = told) -> None:
            try:
                while True:
                    thread.run(asyncio.sleep(0))
            except ClosedError as error:
                told.append(error)

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        thread.stop()
        for asker in askers:
            asker.join(60)
            assert not asker.is_alive()
        assert len(told) == 3
        thread.stop()
        thread.soon(pytest.fail)
