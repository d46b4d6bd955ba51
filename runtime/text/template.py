"""The model's own chat template, with its quirks found out once.

Templates differ, and cannot be asked. So a few conversations of marker words are rendered when the model is loaded, and
the places where the markers come out tell:

- it wants content as a list of parts (vision-language models);
- it has a switch for thought, which is turned off, or opens the reply with thought that nothing turns off (`thought`);
- it refuses or drops the system role (Gemma), or moves it to the last user message (some Mistral): the system text is
  folded into the first user message instead, where it stays in place as the conversation grows;
- it puts in a default system message when there is none (SmolLM2, Qwen, Llama 3.1): that message is cut out again. It
  is known by the header of a user message with the word `system` in place of `user`. Where the headers are not made
  that way, or it stands in a user's message, an empty system message is given if that keeps it out. A template that
  renders the same text beside a system message keeps it;
- it refuses roles that do not alternate (Gemma, Llama 2): neighbours of one role are joined;
- it refuses empty content: `EMPTY` stands for it.

Then conversations of every other shape are rendered, so mended (`shapes`): at the first turn, of many turns, where the
assistant spoke first, where somebody spoke twice. What one of them brings out is mended in the same ways; a template
that none of these helps is refused.

Nothing that was said is lost on the way. Where a reply opens a conversation and the template wants a user to, the
system text is the user's first message, or `EMPTY` is where there is none or the system text has a place of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from string import punctuation, whitespace
from typing import Any

from runtime.text.replies.channels import ChannelFilter
from runtime.text.shapes import SYSTEM, endings_of, fault_of
from runtime.text.template_call import LONGEST_REASON, TemplateCall, TemplateMessage, in_order, reason_of
from runtime.text.thought import FIRST, REPLY, Thought, hides, thought_of, unknown_opening

SECOND = "Qsecondq"
EMPTY = "…"
# What to do about a template that is refused.
CORRECT = "correct the chat template, or choose another instruct model"
# Every sign that a template might take out of what is said, each between letters; how often `everywhere` says a text.
UNALTERED = "Q" + "".join(
    f"{sign}q" for sign in (*punctuation, *whitespace, "\u200b", "\u200d", "\ufeff", "\u00a0", "｜", "▁")
)
EVERYWHERE = 4


class ChatTemplate:
    """Renders conversations to text.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        control: matches the tokenizer's control tokens.
        think: let a model that always thinks do so; else its speech begins at once wherever the template has a header
            for it.

    Attributes:
        thought: how the model thinks.
        begun: what the prompt of a first turn ends with, after the user's words.
        endings: the same of each shape of conversation, the longest first; one where all end alike.
        thinks: the reply begins with thought, in some of them at least, and nothing turns that off.
        alters: whether what is said is not in the prompt as it was said, outer space aside.
        turn_end: the control token after a reply; none where there is none.

    Raises:
        ValueError: the template cannot render a plain exchange of user and assistant, or another conversation.
    """

    def __init__(self, tokenizer: Any, control: re.Pattern[str], *, think: bool = False) -> None:  # noqa: ANN401
        self._call = TemplateCall(tokenizer)  # renders
        self._control = control
        exchange = [("user", FIRST), ("assistant", REPLY)]
        whole = [*exchange, ("user", SECOND)]
        plain = self._in_some_form(whole)
        self.thought: Thought = thought_of(self._call)
        self._call.told = dict(self.thought.off)
        plain = self._call.attempt(whole) or plain
        words = self.thought.off_words
        prompt = (self._call.attempt([("system", words), *whole]) if words else None) or plain
        # What the template ends a prompt with.
        self._opened = self.begun = prompt[prompt.rindex(SECOND) + len(SECOND) :]
        # What is said for the model behind that, at the beginning of its reply.
        self._opener = "" if think else self._speech_header(plain)
        self.begun += self._opener
        with_system = self._call.attempt([("system", SYSTEM), *whole])
        # Whether the system text goes into a user message.
        self._folds_system = not in_order(with_system, SYSTEM, FIRST, REPLY, SECOND)
        # Whether it refuses neighbours of one role.
        self._must_alternate = not self._takes_neighbours(exchange)
        # Whether a user has to open.
        self._must_begin = not in_order(self._call.attempt([("assistant", REPLY), ("user", SECOND)]), REPLY, SECOND)
        if any(
            self._call.attempt(turns) is None for turns in ([("user", "")], [whole[0], ("assistant", ""), whole[2]])
        ):
            self._call.empty = EMPTY
        closed = self._call.attempt(exchange, reply_begins=False)
        between = plain[plain.index(REPLY) + len(REPLY) : plain.index(SECOND)]
        after = closed[closed.index(REPLY) + len(REPLY) :] if closed and REPLY in closed else ""
        self.turn_end = self._end_of_turn(after) or self._end_of_turn(between)
        # What stands before a user's words.
        self._user_header = self._header(after, between)
        # The same text beside a system message is no stand-in for one.
        self._keeps_default = self._default_of(plain) in (with_system or "")
        # Whether it is given an empty system message where there is none.
        self._mutes = False
        self._mend_other_shapes()
        self._mutes = self._can_mute()
        first = self.render("", [("user", FIRST)])
        self.begun = first[first.rindex(FIRST) + len(FIRST) :]
        self.endings = endings_of(self.render)
        header = plain[plain.index(FIRST) + len(FIRST) : plain.index(REPLY)]
        for ending in self.endings:
            if (opening := unknown_opening(self.thought.marks, header, ending)) is not None:
                raise ValueError(
                    "expected a chat template that opens no thought, or one by marks that are known such as <think>, "
                    f"found {opening[:LONGEST_REASON]!r} at the end of a prompt; {CORRECT}"
                )
        self.thinks = any(ChannelFilter(self.thought.marks, ending).hidden for ending in self.endings)
        everywhere = self.everywhere(UNALTERED)
        self.alters = everywhere.count(UNALTERED) < EVERYWHERE
        self._call.shorten([exchange, whole, [("system", SYSTEM), *whole]])

    def render(self, system: str, turns: Sequence[TemplateMessage]) -> str:
        """The conversation as text that ends where the reply begins. An empty `system` renders no system message."""
        text = self._render(system, turns, reply_begins=True)
        return text + self._opener if text.endswith(self._opened) else text

    def everywhere(self, text: str) -> str:
        """A conversation in which everybody says the same."""
        return self.render(text, [("user", text), ("assistant", text), ("user", text)])

    def begun_of(self, prompt: str) -> str | None:
        """What a prompt ends with, after the user's words, where prompts do not all end alike; else none."""
        if len(self.endings) == 1 and self.endings[0] == self.begun:
            return None
        return next((ending for ending in self.endings if prompt.endswith(ending)), None)

    def attempt(self, turns: Sequence[TemplateMessage]) -> str | None:
        """Render a conversation as it is, nothing mended; none where the template refuses it."""
        return self._call.attempt(turns)

    def render_whole(self, turns: Sequence[TemplateMessage]) -> str:
        """A conversation of any roles and order that has ended, mended into what the template takes.

        Raises:
            ValueError: no turn of a user or an assistant, or the template refuses it all the same.
        """
        system = "\n\n".join(content for role, content in turns if role == "system" and content)
        spoken = [(role, content) for role, content in turns if role in ("user", "assistant")]
        if not spoken:
            raise ValueError("expected turns of a user or an assistant, found none")
        try:
            return self._render(system, spoken, reply_begins=False)
        except Exception as error:  # whatever a template makes of what it did not expect
            raise ValueError(f"the chat template refuses the conversation: {error}") from error

    def _render(self, system: str, turns: Sequence[TemplateMessage], *, reply_begins: bool) -> str:
        if self._must_alternate:
            turns = _alternating(turns)
        system = "\n\n".join(part for part in (system, self.thought.off_words) if part)
        if system and self._folds_system:
            turns, system = _folded(system, turns), ""
        elif self._must_begin and turns[0][0] != "user":
            turns = [("user", EMPTY), *turns]
        if system:
            return self._call.apply([("system", system), *turns], reply_begins=reply_begins)
        if self._mutes:
            return self._call.apply([("system", ""), *turns], reply_begins=reply_begins)
        text = self._call.apply(turns, reply_begins=reply_begins)
        return text if self._keeps_default else self._without_default(text, turns)

    def _without_default(self, text: str, turns: Sequence[TemplateMessage]) -> str:
        # Where a reply opens, a conversation that a user opens tells where the default ends.
        default = self._default_of(text if turns[0][0] == "user" else self._call.apply([("user", FIRST)]))
        return text.replace(default, "", 1)

    # What is found out

    def _in_some_form(self, turns: Sequence[TemplateMessage]) -> str:
        found = "loses words of them"
        for self._call.parts in (False, True):
            try:
                plain = self._call.apply(turns)
            except Exception as error:  # noqa: BLE001 - a template raises whatever it stumbles over
                found = f"refuses them: {reason_of(error)}" if not self._call.parts else found
            else:
                if in_order(plain, FIRST, REPLY, SECOND):
                    return plain
        raise ValueError(
            f"expected a chat template that renders user and assistant turns, found one that {found}; {CORRECT}"
        )

    def _mend_other_shapes(self) -> None:
        """Mend what only other conversations than the plain ones bring out, in the ways that are known."""
        if (fault := fault_of(self.render)) is None:
            return
        found = (self._folds_system, self._must_alternate, self._must_begin)
        for mends in product((False, True), repeat=len(found)):
            if all(now or not before for now, before in zip(mends, found, strict=True)):
                self._folds_system, self._must_alternate, self._must_begin = mends
                if fault_of(self.render) is None:
                    return
        raise ValueError(f"expected a chat template that renders every conversation, found {fault}; {CORRECT}")

    def _can_mute(self) -> bool:
        """Whether a default system message is left in, and an empty one keeps it out and does no harm."""
        user = [("user", FIRST)]
        before, _, after = (self._call.attempt([("system", SYSTEM), *user]) or "").partition(SYSTEM)
        plain = self._call.attempt(user) or ""
        default = plain.removeprefix(before).removesuffix(after).strip()
        if f"{before}{default}{after}".split() != plain.split() or not any(map(str.isalnum, default)):
            return False
        if default not in self.render("", user) + self.render(SYSTEM, user):
            return False
        self._mutes = True
        return fault_of(self.render) is None and default not in self.render("", user) + self.render(SYSTEM, user)

    def _takes_neighbours(self, exchange: Sequence[TemplateMessage]) -> bool:
        users = self._call.attempt([("user", FIRST), ("user", SECOND)])
        replies = self._call.attempt([*exchange, ("assistant", SYSTEM), ("user", SECOND)])
        return in_order(users, FIRST, SECOND) and in_order(replies, FIRST, REPLY, SYSTEM, SECOND)

    def _speech_header(self, plain: str) -> str:
        """What a reply that is speech begins with, where the model would begin with another channel: said for it."""
        marks = self.thought.marks
        header = plain[plain.index(FIRST) + len(FIRST) : plain.index(REPLY)]
        begins_so = ChannelFilter(marks, self.begun).in_header and header.startswith(self.begun)
        return header[len(self.begun) :] if begins_so and not hides(marks, header) else ""

    def _end_of_turn(self, after_reply: str) -> str | None:
        match = self._control.search(after_reply)
        if match is None or after_reply[: match.start()].strip() or match[0] in self.thought.ends:
            return None
        return match[0]

    def _header(self, after: str, between: str) -> str:
        """What stands before a user's words: between a reply and the next utterance, less what ends the reply."""
        if between.startswith(after):
            return between[len(after) :]
        ending, pieces = self._pieces(after), self._pieces(between)
        same = 0
        while same < min(len(ending), len(pieces)) and ending[same] == pieces[same]:
            same += 1
        if not same and all(found and self._control.fullmatch(found[0]) for found in (ending, pieces)):
            same = 1  # the last reply of a conversation ends with another token than the ones before (gpt-oss)
        return "".join(pieces[same:])

    def _pieces(self, text: str) -> list[str]:
        """A text cut before and behind control tokens."""
        pieces, at = [], 0
        for match in self._control.finditer(text):
            pieces += [text[at : match.start()], match[0]]
            at = match.end()
        return [piece for piece in (*pieces, text[at:]) if piece]

    def _default_of(self, text: str) -> str:
        """The system message that a conversation without one was given; empty where there is none."""
        first_user = text.find(self._user_header) if self._user_header else -1
        for user, system in (("user", "system"), ("User", "System"), ("USER", "SYSTEM")):
            default = text.find(self._user_header.replace(user, system), 0, max(first_user, 0))
            if default >= 0:
                return text[default:first_user]
        return ""


def _alternating(turns: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    joined: list[TemplateMessage] = []
    for role, content in turns:
        if joined and joined[-1][0] == role:
            joined[-1] = (role, f"{joined[-1][1]}\n\n{content}")
        else:
            joined.append((role, content))
    return joined


def _folded(system: str, turns: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """The system text before the first user's words, or as the first user message where a reply comes before them."""
    if turns[0][0] == "user":
        return [("user", f"{system}\n\n{turns[0][1]}"), *turns[1:]]
    return [("user", system), *turns]
