"""What a framework's context asks of the server: the server ends up with that conversation, and no more is sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yap_client.frameworks.context import Comparison, Context, Item, Plan, ToolResult, in_order
from yap_client.transcript import Message, Transcript

HELLO = (Message("user", "Hello there."), Message("assistant", "Well, hello to you."))


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def plan(items: tuple[Item, ...], held: tuple[Message, ...] | None, reply: str = "", **options: bool) -> Plan:
    return Comparison().plan(Context(items=items), held, reply, **options)


def test_only_the_next_utterance_goes_where_nothing_else_was_said() -> None:
    assert plan((*HELLO, user("And now?")), HELLO, HELLO[1].content) == Plan("And now?", (), HELLO)
    assert plan((user("Hello."),), ()) == Plan("Hello.", (), ())
    assert plan((), ()) == Plan("", (), ())


def test_where_the_assistant_is_to_go_on_there_is_no_utterance() -> None:
    assert plan(HELLO, HELLO, HELLO[1].content) == Plan("", (), HELLO)


@pytest.mark.parametrize(
    ("noted", "heard"),
    [
        ("Well,", 5),
        ("Well, hello", 11),
        ("Well,  hello\n", 11),
        ("Well,hello", 11),
        ("Well, hello to you", 18),
        ("", 0),
    ],
)
def test_a_beginning_of_the_last_reply_is_what_was_heard(noted: str, heard: int) -> None:
    items = (HELLO[0], *([assistant(noted)] if noted else []), user("And now?"))
    found = plan(items, HELLO, HELLO[1].content)
    assert (found.replaces, found.heard) == (False, heard)


def test_a_reply_that_can_no_longer_be_cut_is_replaced() -> None:
    assert plan((HELLO[0], assistant("Well,"), user("And now?")), HELLO).replaces


@pytest.mark.parametrize(
    "before",
    [
        (),
        (HELLO[1],),
        (user("Something else."), HELLO[1]),
        (HELLO[0], assistant("Something else.")),
        (*HELLO, *HELLO),
        (HELLO[0], assistant("Well, hello to you. And more.")),
        (HELLO[0], user("Well, hello to you.")),
        (*HELLO, ToolResult("c1", "a cat")),
    ],
)
def test_another_conversation_is_sent_whole(before: tuple[Item, ...]) -> None:
    assert plan((*before, user("And now?")), HELLO, HELLO[1].content).replaces


def test_what_is_not_known_is_sent_whole() -> None:
    assert plan((*HELLO, user("And now?")), None) == Plan("And now?", (), HELLO, replaces=True)


def test_a_result_is_to_be_answered_once_wherever_the_framework_notes_it() -> None:
    """Pipecat notes the words that came with a call behind the call's result, and maybe only later."""
    comparison = Comparison("Seen:")
    result = ToolResult("c1", "a cat")
    look = (user("Look!"), assistant("Let me see."))
    for items in ((*look, result), (look[0], result, look[1]), (look[0], result)):
        comparison.asked("c1")
        found = comparison.plan(Context(items=items), look, look[1].content)
        assert (found.utterance, found.results, found.replaces, found.heard) == ("a cat", (result,), False, None)
    comparison.took(found)
    held = (*look, user("Seen: a cat"), assistant("How sweet."))
    items = (look[0], result, look[1], held[3], user("And now?"))
    assert comparison.plan(Context(items=items), held, "How sweet.") == Plan("And now?", (), items[:-1])


def test_a_result_of_a_turn_that_the_history_does_not_have_is_answered_again() -> None:
    comparison = Comparison()
    look = (user("Look!"), assistant("Let me see."))
    items = (*look, ToolResult("c1", "a cat"))
    comparison.took(comparison.plan(Context(items=items), look, look[1].content))
    for held in (look, None):
        assert comparison.plan(Context(items=items), held).results == items[2:]


def test_the_results_of_a_conversation_from_elsewhere_are_answered_already() -> None:
    items = (user("Look!"), ToolResult("c1", "a cat"), assistant("How sweet."))
    found = Comparison("Seen:").plan(Context(items=items), None)
    assert (found.utterance, found.results) == ("", ())
    assert Comparison("Seen:").messages(found.before)[1] == user("Seen: a cat")


def test_words_that_were_noted_late_come_before_the_next_utterance() -> None:
    late = Context(items=(HELLO[0], user("And now?"), HELLO[1]))
    assert in_order(late, HELLO[0].content, HELLO[1].content).items == (*HELLO, user("And now?"))
    assert in_order(late, HELLO[0].content, "Something else.") == late
    assert in_order(Context(items=HELLO), HELLO[0].content, HELLO[1].content).items == HELLO


WORDS = st.lists(st.sampled_from(["yes", "no", "a cat,", "well", "😀"]), min_size=1, max_size=4).map(" ".join)


@st.composite
def turns(draw: st.DrawFn) -> list[tuple[str, str, str, int]]:
    """Of each turn: the utterance, the reply, how it ends, and how many of its words the listener gets."""
    ends = st.sampled_from(["whole", "heard", "cancelled", "unheard", "open", "edited"])
    return draw(st.lists(st.tuples(WORDS, WORDS, ends, st.integers(0, 4)), max_size=12))


@given(turns())
def test_the_server_answers_what_the_framework_asks(said: list[tuple[str, str, str, int]]) -> None:
    """However replies end, and whoever changes the conversation; and nothing is sent that the server has."""
    comparison = Comparison()
    server = Transcript()
    noted: list[Item] = []
    known, changed = True, False
    for utterance, reply, end, words in said:
        context = Context(items=(*noted, user(utterance)))
        found = comparison.plan(context, server.messages if known else None, server.reply)
        if found.replaces:
            server.replace(comparison.messages(found.before))
        elif found.heard is not None:
            server.cut(found.heard)
        assert squashed(server.messages) == squashed(noted)
        assert found.utterance == utterance
        assert not found.replaces or changed or not known
        comparison.took(found)
        known, changed = True, False
        noted.append(user(utterance))
        if end == "unheard":  # cancelled before its first word: only the framework keeps the utterance
            server.skip()
            changed = True
            continue
        server.add(utterance, reply)
        heard = {"heard": words, "cancelled": words}.get(end, len(reply.split(" ")))
        if spoken := "  ".join(reply.split(" ")[:heard]):
            noted.append(assistant(spoken))
        if end == "open":
            known = False
        elif end == "edited":
            noted.insert(0, assistant("Something else entirely."))
            changed = True


def squashed(messages: tuple[Message, ...] | list[Item]) -> list[tuple[str, str]]:
    """Words without spaces, what one side said in a row together."""
    runs: list[tuple[str, str]] = []
    for message in messages:
        assert isinstance(message, Message)
        text = "".join(message.content.split())
        if runs and runs[-1][0] == message.role:
            runs[-1] = (message.role, runs[-1][1] + text)
        else:
            runs.append((message.role, text))
    return runs
