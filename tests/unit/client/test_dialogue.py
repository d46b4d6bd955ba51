"""The dialogue against a model of the server, in every order: losses, drains, takeovers, refusals, late frames."""

from __future__ import annotations

import json

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.harness.client.model_server import ModelConnection, ModelServer
from yap_client.dialogue import Dialogue
from yap_client.dialogue.exchanges import Request, TurnState
from yap_client.errors import RefusedError, ServerGoneError
from yap_client.events import Done, Interrupted, Token, TurnEvent
from yap_client.session import Session
from yap_client.transcript import Message

few = st.integers(0, 6)
# Of so many steps the smallest case takes minutes to find: `Phase.shrink` is for who has them.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


class Listener:
    """Who takes a turn's events, and knows when it was interrupted."""

    def __init__(self, state: TurnState, utterance: str, persona: int) -> None:
        self.state = state
        self.utterance = utterance
        self.persona = persona
        self.events: list[TurnEvent] = []
        self.interrupted_at: int | None = None

    def listen(self) -> None:
        self.events.extend(self.state.events)
        self.state.events.clear()

    def interrupt(self) -> None:
        if self.interrupted_at is None and not self.state.over:
            self.interrupted_at = len(self.events)

    def check(self) -> None:
        ends = [event for event in self.events if isinstance(event, (Done, Interrupted))]
        assert len(ends) <= 1
        assert ends == self.events[-1:] or not ends
        assert all(event.request_id == self.state.id for event in self.events)
        if self.interrupted_at is not None:
            assert self.events[self.interrupted_at :] == ends, "nothing of a turn is heard after its interruption"
        said = "".join(event.text for event in self.events if isinstance(event, Token))
        assert self.state.said.startswith(said)


class Conversation(RuleBasedStateMachine):
    """One client, and servers that come and go."""

    @initialize(shared=st.booleans(), replies=st.booleans(), history=st.booleans(), named=st.booleans())
    def begin(self, shared: bool, replies: bool, history: bool, named: bool = False) -> None:
        self.shared, self.replies = shared, replies  # whether there is a session store, and what it keeps
        past = [{"role": "user", "content": "before"}] if history else None
        self.session = Session("s1" if history or named else None, {"persona": "P0"}, None, past)
        self.behind = False  # whether the store has ever known less than was said
        self.misled = False  # whether an error has ever been lost on its way
        self.dialogue = Dialogue(self.session)
        self.server = ModelServer()
        self.connection: ModelConnection | None = None
        self.ghosts: list[ModelConnection] = []  # connections whose loss the server has not noticed
        self.lost: set[str] = set()  # the client's texts that no server got
        self.listeners: list[Listener] = []
        self.requests: list[Request] = []
        self.personas = self.numbers = 0

    # The client's wishes

    @rule(follows=st.booleans(), new_persona=st.booleans(), heard=st.none() | few, rounds=few)
    def say(self, follows: bool, new_persona: bool, heard: int | None, rounds: int) -> None:
        current = self.dialogue.current
        if heard is not None and current is not None:
            chars = min(heard, len(current.said))
            self.requests.append(self.dialogue.heard(current, {"chars": chars}))
        self.numbers += 1
        utterance = f"u{self.numbers}"
        if self.listeners:
            self.listeners[-1].listen()
            self.listeners[-1].interrupt()
        if follows:
            state = self.dialogue.say("followup", {"analysis_text": utterance}, utterance)
        else:
            if new_persona:
                self.personas += 1
                self.session.want({"persona": f"P{self.personas}"})
            state = self.dialogue.say("start", {"user_utterance": utterance}, utterance)
        self.listeners.append(Listener(state, utterance, 0 if follows else self.personas))
        if self.connection is not None:
            self.flow(rounds)

    @precondition(lambda self: self.listeners)
    @rule()
    def cancel(self) -> None:
        self.listeners[-1].listen()
        self.listeners[-1].interrupt()
        self.dialogue.cancel(self.listeners[-1].state)

    @rule(utterance=st.sampled_from(["one", "two"]), anew=st.booleans())
    def prepare(self, utterance: str, anew: bool) -> None:
        session = self.dialogue.session
        before = (session.due(), session.history_due, session.version, len(self.dialogue._waiting))
        history = [Message("user", "hm")] if anew else None
        fields = session.due_with({"persona": "never told"}, {"seed": 1}, history)
        self.dialogue.prepare({**fields, "user_utterance": utterance})
        assert before == (session.due(), session.history_due, session.version, len(self.dialogue._waiting))

    @rule(warms=st.booleans())
    def ask(self, warms: bool) -> None:
        kind = "warm_persona" if warms else "ping"
        self.requests.append(self.dialogue.request(kind, {"persona_text": "P"} if warms else {}))

    @precondition(lambda self: self.session.begun)
    @rule()
    def set_persona(self) -> None:
        self.personas += 1
        self.session.want({"persona": f"P{self.personas}"})
        fields = {"session_id": self.session.key, "persona_text": f"P{self.personas}"}
        self.requests.append(self.dialogue.request("chat_prompt", fields))

    @precondition(lambda self: self.listeners)
    @rule()
    def listen(self) -> None:
        self.listeners[-1].listen()

    # The network

    @precondition(lambda self: self.connection is None)
    @rule(other=st.booleans(), behind=st.integers(0, 4), rounds=st.integers(0, 12))
    def connect(self, other: bool, rounds: int, behind: int = 0) -> None:
        if other:
            self.another_server(behind)
        self.connection = self.server.connect()
        self.dialogue.connected()
        self.flow(rounds)

    @precondition(lambda self: self.connection is not None)
    @rule(count=few)
    def deliver_to_server(self, count: int) -> None:
        assert self.connection is not None
        while count and self.dialogue.outgoing and not self.connection.closed:
            self.connection.receive(self.dialogue.outgoing.popleft())
            count -= 1

    @precondition(lambda self: self.connection is not None)
    @rule(count=few)
    def deliver_to_client(self, count: int) -> None:
        assert self.connection is not None
        while count and self.connection.outbox:
            self.receive(self.connection.outbox.popleft())
            count -= 1

    @precondition(lambda self: self.connection is not None)
    @rule(rounds=st.integers(4, 12))
    def flow(self, rounds: int) -> None:
        """Let everything take its way, for a while."""
        for _ in range(rounds):
            self.deliver_to_server(100)
            self.work(1)
            self.deliver_to_client(100)

    @precondition(lambda self: self.connection is not None)
    @rule(arrives=few, noticed=st.booleans())
    def lose(self, arrives: int, noticed: bool) -> None:
        assert self.connection is not None
        self.deliver_to_client(arrives)
        self.forget_errors()
        # Whose session is not surely its own leaves it to a server that does not know of the loss to end the turn.
        if noticed or not self.session.own:
            self.connection.end()
        else:
            self.ghosts.append(self.connection)
        self.connection = None
        self.dialogue.lost("the socket was cut", 1006)

    def forget_errors(self) -> None:
        """Note errors that never come: a server keeps nothing of a failed turn, but what it said of one that was cut.

        The client takes such a turn for one that was cut, and cannot know better.
        """
        assert self.connection is not None
        if any(json.loads(frame)["type"] == "error" for frame in self.connection.outbox):
            self.misled = True

    @precondition(lambda self: self.ghosts)
    @rule()
    def notice(self) -> None:
        self.ghosts.pop().end()

    # The server

    @precondition(lambda self: self.connection is not None)
    @rule(count=few)
    def work(self, count: int) -> None:
        assert self.connection is not None
        for _ in range(count):
            self.connection.work()

    @precondition(lambda self: self.ghosts)
    @rule()
    def work_for_nobody(self) -> None:
        self.ghosts[-1].work()

    @precondition(lambda self: self.connection is not None)
    @rule()
    def fail(self) -> None:
        assert self.connection is not None
        self.connection.fail()

    @rule(code=st.sampled_from(["message_rate_limited", "invalid_user_utterance"]))
    def refuse(self, code: str) -> None:
        if len(self.server.refuses) < 2:
            self.server.refuses.append(code)

    @precondition(lambda self: not self.server.draining)
    @rule()
    def drain(self) -> None:
        self.server.draining = True
        if self.connection is not None:
            self.connection.drain()

    @precondition(lambda self: self.connection is not None and self.server.draining)
    @rule(waits=st.booleans())
    def leave(self, waits: bool) -> None:
        """The server has gone: when its turn had ended, or because its time was over."""
        assert self.connection is not None
        while waits and self.connection._running() is not None:
            self.connection.speak()
        self.connection.end()
        while self.connection.outbox:
            self.receive(self.connection.outbox.popleft())
        self.connection = None
        self.dialogue.lost("1001 draining", 1001)
        self.another_server()

    @precondition(lambda self: self.connection is not None and self.listeners)
    @rule(data=st.data())
    def send_a_late_frame(self, data: st.DataObject) -> None:
        assert self.connection is not None
        over = [listener.state.id for listener in self.listeners if listener.state.over]
        if over:
            id_ = data.draw(st.sampled_from(over))
            late = data.draw(st.sampled_from(["token", "done"]))
            frame = {"token": {"text": "late"}, "done": {"cancelled": True}}[late]
            self.connection.outbox.append(json.dumps({"type": late, "request_id": id_, **frame}))

    def another_server(self, behind: int = 0) -> None:
        """Let another server come, after one that was perhaps killed before it had written its last changes."""
        self.behind = self.behind or behind > 0
        for ghost in self.ghosts:
            ghost.end()
        self.ghosts.clear()
        self.server = ModelServer(self.server.stored(replies=self.replies, behind=behind) if self.shared else {})
        for session in self.server.sessions.values():
            self.server.note(session)

    def receive(self, text: str) -> None:
        frame = json.loads(text)
        begun = frame["type"] == "ack" and frame["for"] in ("start", "followup")
        state = self.dialogue._open.get(frame.get("request_id")) if begun else None
        self.dialogue.received(text)
        if isinstance(state, TurnState):
            listener = next(each for each in self.listeners if each.state is state)
            # Of an utterance that was sent twice the server began two turns, of which the first was never told.
            _, persona, history, _ = [each for each in self.server.begun if each[3] == listener.utterance][-1]
            sure = not self.misled and (self.session.transcript.complete or not self.behind)
            if self.session.version == state.version and state.asked is None and sure:
                said = [(message.role, message.content) for message in self.session.transcript.messages]
                assert history == said, "the server has what was said, whole and once"
            assert int(persona[1:]) >= listener.persona, "the server has the persona that was chosen"

    @invariant()
    def every_turn_is_sound(self) -> None:
        for listener in getattr(self, "listeners", ()):
            listener.check()

    def teardown(self) -> None:
        """In the end a server is there: every turn has its one end, every request its answer."""
        if not hasattr(self, "dialogue"):
            return
        self.server.refuses.clear()
        for _ in range(200):
            if self.connection is None:
                if self.server.draining:
                    self.another_server()
                self.connect(other=False, behind=0, rounds=0)
            if self.server.draining:
                self.leave(waits=True)
                continue
            before = (len(self.dialogue.outgoing), len(self.connection.outbox), len(self.connection.waiting))
            self.deliver_to_server(100)
            for _ in range(20):
                self.connection.work()
            self.deliver_to_client(100)
            if before == (0, 0, 0) and not self.dialogue._open and not self.dialogue._waiting:
                break
        for listener in self.listeners:
            listener.listen()
            listener.check()
            state = listener.state
            assert state.over
            ended = [event for event in listener.events if isinstance(event, (Done, Interrupted))]
            assert len(ended) == (state.error is None)
            assert isinstance(state.error, (RefusedError, ServerGoneError, type(None)))
        for request in self.requests:
            assert request.over
        utterances = [message.content for message in self.session.transcript.messages if message.role == "user"]
        assert len(utterances) == len(set(utterances)), "nothing was said twice"


Conversation.TestCase.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, phases=PHASES, report_multiple_bugs=False
)
test_every_order_of_events = Conversation.TestCase


# Orders that were wrong once, and are rare among all


def conversation() -> Conversation:
    """A client whose first turn is over."""
    made = Conversation()
    made.begin(shared=False, replies=True, history=False)
    made.connect(other=False, rounds=1)
    say(made, rounds=12)
    assert made.listeners[0].state.over
    return made


def say(made: Conversation, rounds: int, heard: int | None = None) -> TurnState:
    made.say(follows=False, new_persona=False, heard=heard, rounds=rounds)
    return made.listeners[-1].state


def settle(made: Conversation) -> TurnState:
    """One turn more, which is checked as it begins, and the end."""
    last = say(made, rounds=12)
    assert last.acknowledged
    made.teardown()
    return last


def test_a_cancel_that_may_have_ended_two_turns_loses_no_utterance() -> None:
    made = conversation()
    say(made, rounds=0)
    say(made, rounds=0)
    made.cancel()
    made.flow(12)
    settle(made)
    assert made.server.begun[-1][2][-1] == ("user", "u2"), "who went on speaking had said it"


def test_what_a_server_said_and_nobody_received_is_not_in_the_history() -> None:
    made = conversation()
    turn = say(made, rounds=0)
    made.deliver_to_server(9)
    assert made.connection is not None
    made.connection.work()
    made.deliver_to_client(1)
    assert turn.acknowledged
    made.work(2)
    made.lose(arrives=0, noticed=True)
    made.connect(other=False, rounds=12)
    settle(made)
    assert ("user", "u2") not in made.server.begun[-1][2]


def test_after_a_turn_that_never_began_the_reply_before_can_still_be_cut() -> None:
    made = conversation()
    say(made, rounds=0)
    made.lose(arrives=0, noticed=True)
    made.connect(other=False, rounds=12)
    request = made.dialogue.heard(made.listeners[0].state, {"chars": 3})
    made.flow(4)
    assert request.error is None
    settle(made)
    assert [content for role, content in made.server.begun[-1][2] if role == "assistant"] == [
        made.listeners[0].state.said[:3]
    ]


def test_a_refused_turn_stops_the_one_before_and_none_after() -> None:
    made = conversation()
    made.flow(12)
    old = say(made, rounds=3)
    made.server.refuses.append("invalid_user_utterance")
    refused = say(made, rounds=0)
    new = say(made, rounds=12)
    made.teardown()
    assert isinstance(refused.error, RefusedError)
    assert old.over
    assert isinstance(made.listeners[-1].events[-1], Done)
    assert made.listeners[-1].events[-1].usage is not None
    assert new.asked is None

    made = conversation()
    running = say(made, rounds=3)
    made.server.refuses.append("invalid_user_utterance")
    say(made, rounds=3)
    assert running.over, "nobody listens to it any more"
    assert not running.said.count("2 "), "and it has not gone on to its end"


def test_how_much_was_heard_is_told_before_a_history_is_sent_again() -> None:
    made = conversation()
    made.lose(arrives=0, noticed=True)
    made.session.history_due = True
    made.connect(other=False, rounds=2)
    last = say(made, rounds=12, heard=0)
    assert last.acknowledged
    assert made.server.begun[-1][2] == [("user", "u1")]


def test_a_turn_that_was_cut_before_anything_was_said_makes_no_history_go_again() -> None:
    made = conversation()
    say(made, rounds=1)
    made.lose(arrives=0, noticed=True)
    made.connect(other=False, rounds=12)
    assert not made.session.history_due
    settle(made)


def test_a_turn_that_a_server_began_and_nobody_knew_of_is_not_in_the_history() -> None:
    made = conversation()
    turn = say(made, rounds=0)
    made.deliver_to_server(9)
    made.work(3)
    made.lose(arrives=0, noticed=True)
    assert not turn.acknowledged
    made.connect(other=False, rounds=12)
    settle(made)
    assert ("user", "u2") not in made.server.begun[-1][2]


def test_a_history_is_not_sent_again_before_what_is_left_of_every_turn_is_known() -> None:
    for rounds in range(6):
        made = Conversation()
        made.begin(shared=False, replies=False, history=False)
        made.connect(other=False, rounds=1)
        say(made, rounds=0)
        say(made, rounds=1)
        made.cancel()
        made.work(rounds)
        say(made, rounds=12)
        assert made.session.transcript.messages[0] == Message("user", "u1")
        settle(made)
