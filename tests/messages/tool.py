"""Labelled conversations for the decision: what was said, turn by turn, and which tools are asked for.

Those here are about the screenshot alone; none of them is in the embedded classifier's training or held-out set. Others
come from a file (`read_cases`). A case with several turns is replayed on one session, so that each decision sees the
turns before it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

SCREENSHOT = "take_screenshot"
# Labels of a file that ask for nothing.
NOTHING = frozenset({"none", "no", "no_tool"})


@dataclass(frozen=True, slots=True)
class LabelledUtterance:
    """What the user says, and the tools that should be asked for then; none where it only leads to the next turn."""

    text: str
    tools: frozenset[str] | None

    @property
    def expect(self) -> bool:
        """Whether it should be answered by a look at the screen."""
        return self.tools is not None and SCREENSHOT in self.tools


@dataclass(frozen=True, slots=True)
class ToolCase:
    """One conversation.

    Attributes:
        name: the kind and a number, unique.
        kind: what makes it a yes or a no.
        turns: the user's turns, oldest first.
    """

    name: str
    kind: str
    turns: tuple[LabelledUtterance, ...]


_YES: dict[str, tuple[str, ...]] = {
    "look": (
        "look at this bird on my balcony",
        "take a look at my desktop, something is off",
        "hey can you look at this for me",
        "look at this chart and tell me where it peaks",
        "please have a look at the photo I opened",
        "would you look at what my kid painted",
        "check out my new sneakers",
        "check this out, I finished the puzzle",
        "quick, look at this before it's gone",
        "look at my screen and tell me what to do next",
    ),
    "see": (
        "can you see my screen right now",
        "can you see the picture I just opened",
        "do you see the typo in this headline",
        "do you see this little green dot",
        "can you see what's wrong with this sentence",
        "tell me what you see on my display",
        "can you see which tab is playing music",
        "what do you see in this picture",
    ),
    "capture": (
        "take a screenshot and explain it to me",
        "screenshot my screen please",
        "grab a screenshot of this conversation",
        "capture the screen so you know what I mean",
        "can you take a screenshot of this page",
        "check my screen, there's a weird message",
        "read what's on my screen",
    ),
    "clothes": (
        "what do you think of this outfit for the office",
        "does this jacket go with these jeans",
        "how do I look in this",
        "is this dress too formal for a barbecue",
        "do these earrings match my necklace",
        "which of these ties is better",
        "does this sweater make me look old",
        "rate my outfit from one to ten",
        "is my makeup okay for the photos",
        "should I wear these shoes or the brown ones here",
        "how does my new haircut look",
    ),
    "mail": (
        "is this email ok to send to my professor",
        "does this message sound rude to you",
        "can you proofread this letter I have open",
        "what does this email want from me",
        "read this message and tell me what she means",
        "is this email a phishing attempt",
        "how should I answer this text from my mom",
        "does the subject line of this mail sound good",
    ),
    "document": (
        "summarize this article for me",
        "what does this paragraph mean",
        "translate this page for me please",
        "can you explain this table to me",
        "what's the total in this spreadsheet",
        "what does it say on the second page here",
        "is this contract okay, what's the fine print say",
        "which question on this worksheet did I get wrong",
        "help me fill out this form",
        "what should I put in this field",
    ),
    "error": (
        "what does this error message mean",
        "why is this red underline here",
        "what's wrong with this code",
        "can you find the bug in this function",
        "what is this warning on my screen",
        "I got this popup, what should I click",
        "why is this window frozen, can you tell",
        "this page isn't loading right, what's it say",
        "which button do I press on this screen",
        "where do I find the save option in this menu",
        "what is this setting here for",
    ),
    "identify": (
        "what kind of flower is this",
        "who is the man in this picture",
        "what is this thing on my wall",
        "what breed is the dog in this photo",
        "do you recognize this place",
        "what's the name of this building",
        "what's this insect on my hand",
        "how many cats are in this picture",
        "which car is this in the photo",
        "is this plant poisonous",
    ),
    "opinion": (
        "what do you think of this painting I made",
        "do you like this picture of my garden",
        "is this logo any good",
        "does this room look too crowded",
        "which of these two photos is better",
        "is this a fair price for the bike on this page",
        "what do you think about this design here",
        "does this cake look good to you",
        "is this profile picture flattering",
        "do you like the way I decorated this",
    ),
    "play": (
        "what move should I make here in chess",
        "help me with this level, what do I do",
        "what's the answer to this crossword clue on my screen",
        "did you see my score up there",
        "which card do I play now from these",
        "where do I go on this map",
    ),
    "spoken": (
        "um so what is this supposed to be",
        "okay so like what does this say",
        "yo look at this lol",
        "hmm is this right",
        "wait what's this here",
        "so this is my new desk, what do you think of it",
        "here look, this is what I mean",
        "how about this one",
        "and what's that in the corner of the screen",
        "oh wow look at this sunset",
    ),
}

_NO: dict[str, tuple[str, ...]] = {
    "chat": (
        "hello again, did you miss me",
        "I had a terrible day",
        "tell me something funny",
        "I'm so happy today",
        "my cat woke me up at five",
        "I think I need a vacation",
        "thank you so much for listening",
        "what are you up to tonight",
        "I love talking to you",
        "let's talk about music",
        "I don't feel like working today",
        "good night, sleep well",
    ),
    "world": (
        "what is the capital of Australia",
        "how many bones does a human have",
        "who wrote Pride and Prejudice",
        "why do onions make you cry",
        "how does a microwave work",
        "what's the population of Canada",
        "when was the printing press invented",
        "how do you make pancakes",
        "what's the difference between jam and jelly",
        "who painted the Sistine Chapel",
        "what's the biggest animal that ever lived",
        "how do glasses correct your vision",
    ),
    "idiom": (
        "look, I really need to talk to you",
        "look, all I'm saying is be careful",
        "see you next week",
        "see you around",
        "I see what you did there",
        "let's see what tomorrow brings",
        "watch out for that guy, he lies",
        "it looks like I'll be working late",
        "I'm looking forward to seeing my parents",
        "things are looking bad at work",
        "I can see why people like him",
        "he's been overlooking my efforts for years",
        "looking back, I should have stayed",
        "you see, my mother was never at home",
        "I'll look into getting a new job",
    ),
    "past": (
        "I looked at old pictures of my school yesterday",
        "she showed me her new house last week",
        "we saw a great play on Sunday",
        "I took a picture of the rainbow this morning",
        "he looked at me and said nothing",
        "I saw a weird error last night but I rebooted",
        "my aunt sent a photo of her roses on Monday",
        "you saw my drawing last time, I gave it away",
        "he told me to look at the moon and then he kissed me",
        "I wore a blue suit to the wedding last year",
    ),
    "later": (
        "I'll show you my painting tomorrow",
        "maybe I'll send you a photo later",
        "when I get home I'll show you the dress",
        "if you could see my room you would laugh",
        "imagine a picture of a red balloon",
        "what would you do if you saw a ghost",
        "I wish you could see this place with me one day",
        "I'm going to take pictures at the concert",
    ),
    "refuse": (
        "don't look at my screen please",
        "please don't take a screenshot",
        "no need to look at anything",
        "I don't want you to see my screen",
        "stop looking at my screen",
        "don't check my screen, just guess",
        "you don't have to look at it",
        "forget about the screenshot",
        "no peeking please",
    ),
    "about": (
        "how do I take a screenshot on my phone",
        "how do I share my screen on a call",
        "what's a good camera for beginners",
        "do you like photography",
        "why do people take so many selfies",
        "how do I take better photos at night",
        "what should I wear to a job interview",
        "what colors look good together in general",
        "is it rude to stare at people",
        "how long should an email to a professor be",
        "what makes a painting valuable",
        "how do I get rid of popups in general",
        "are screens bad for children",
        "can you hear my voice",
    ),
    "told": (
        "is the sentence I has a dog correct",
        "what does the phrase break a leg mean",
        "my jacket is green and my jeans are black, does it match",
        "write me a short email to my landlord",
        "it says error 500, what does that mean",
        "translate see you soon into German",
        "describe a beautiful sunset",
        "I have chicken and rice, what can I cook",
        "write a poem about looking at the sea",
        "he wrote me see you never, what do I answer",
    ),
    "mention": (
        "I've been staring at my screen for ten hours",
        "my phone screen is broken again",
        "my brother is a photographer",
        "I hate the way I look in pictures",
        "people always say I look tired",
        "I'm watching a movie with my sister",
        "I'm reading a book about whales",
        "this song always makes me cry",
        "this is the worst week of my life",
        "what do you think about marriage",
        "is this what being an adult is like",
        "this guy at the gym keeps talking to me",
    ),
}

_CONVERSATIONS: dict[str, tuple[tuple[tuple[str, bool], ...], ...]] = {
    "turns_to_screen": (
        (("good evening", False), ("I went shopping today", False), ("what do you think of this dress I got", True)),
        (
            ("I'm learning to code", False),
            ("it's harder than I thought", False),
            ("what does the error on my screen mean", True),
        ),
        (("my dad loves gardening", False), ("look at this tomato he grew", True)),
        (("do you know a lot about art", False), ("who painted this one here", True)),
        (("I'm so nervous about my date", False), ("how do I look, be nice", True)),
        (("what is the tallest mountain", False), ("and which mountain is in this photo", True)),
        (("I need a new couch", False), ("what about this one on the page", True)),
        (("can you help me with something", False), ("take a look at my screen", True)),
        (("I got a letter from the bank", False), ("can you read this and tell me what they want", True)),
        (("we have a test on monday", False), ("I hate maths", False), ("can you solve this one on my screen", True)),
        (("tell me a joke please", False), ("haha ok now look at this meme", True)),
        (("I started painting again", False), ("here, what do you think of it", True)),
    ),
    "turns_away": (
        (("look at this picture of my dog", True), ("thanks, he's four years old", False)),
        (("is this email okay like this?", True), ("great, thank you", False), ("how was your day", False)),
        (("what does the error in this window mean", True), ("ah I fixed it, thanks", False)),
        (("can you see my screen okay", True), ("okay good", False), ("let's talk about dinner", False)),
        (("how does this shirt look on me", True), ("thank you, you're sweet", False)),
        (("take a screenshot of this", True), ("what's the capital of Spain", False)),
        (("what kind of bird is this", True), ("how long do parrots live", False)),
        (("rate this drawing", True), ("I always wanted to be an artist", False)),
        (("read this message for me", True), ("I'm so angry at her", False)),
        (("which of these photos is better", True), ("I'm tired, good night", False)),
    ),
    "stays_away": (
        (("hi", False), ("I'm bored", False), ("tell me a story", False)),
        (("what is the capital of Italy", False), ("and of Greece", False)),
        (("I saw my ex yesterday", False), ("she looked happy", False), ("I felt nothing", False)),
        (("I like photography", False), ("what about you", False)),
        (("who is the president of France", False), ("how old is he", False)),
        (("look, I'm sorry", False), ("I didn't mean it", False)),
        (("I took some pictures at the lake", False), ("I'll show you some day", False)),
        (("how do I make a screenshot", False), ("thanks that worked", False)),
        (("my eyes are sore", False), ("I've looked at spreadsheets all day", False)),
        (("see you tomorrow then", False), ("sleep well", False)),
    ),
    "comes_back": (
        (("look at this dress", True), ("I think it's nice", False), ("and how about this one", True)),
        (("can you see the bug in this code", True), ("ok I changed it", False), ("look again, is it right now", True)),
        (("don't look at my screen yet", False), ("okay, now you can look at my screen", True)),
        (("is this picture any good", True), ("thank you", False), ("and what do you think of this one", True)),
        (("what breed is this dog", True), ("I love dogs", False), ("and this one, what is it", True)),
        (("what does this word mean on the page", True), ("interesting", False), ("and what does this line say", True)),
        (("please don't take a screenshot", False), ("changed my mind, take a screenshot now", True)),
        (("rate my outfit", True), ("I changed the shoes", False), ("does it look better now", True)),
    ),
}


def _cases() -> tuple[ToolCase, ...]:
    conversations: list[tuple[str, tuple[LabelledUtterance, ...]]] = []
    asked = {True: frozenset({SCREENSHOT}), False: frozenset[str]()}
    for expect, kinds in ((True, _YES), (False, _NO)):
        right = asked[expect]
        conversations += [(kind, (LabelledUtterance(text, right),)) for kind, texts in kinds.items() for text in texts]
    for kind, dialogues in _CONVERSATIONS.items():
        conversations += [(kind, tuple(LabelledUtterance(text, asked[yes]) for text, yes in d)) for d in dialogues]
    count: dict[str, int] = {}
    cases = []
    for kind, turns in conversations:
        count[kind] = count.get(kind, 0) + 1
        cases.append(ToolCase(f"{kind}-{count[kind]:02}", kind, turns))
    return tuple(cases)


CASES = _cases()


def read_cases(path: Path) -> tuple[ToolCase, ...]:
    """Read cases from a JSONL file, as the pipeline's `--tool-utterances` takes it: `text` or `turns`, and `label(s)`.

    A label is the name of a tool, as `toolcall` says it; `none`, `no`, `no_tool` and an empty list ask for nothing.
    What is labelled is the last turn.

    Raises:
        ValueError: a line is none; the message says which.
    """
    try:
        # Lines end at \n alone: a string may hold other ends of lines.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    cases = tuple(_case(number, line) for number, line in enumerate(lines, 1) if line.strip())
    if not cases:
        raise ValueError(f"{path}: expected labelled utterances, found none")
    return cases


def _case(number: int, line: str) -> ToolCase:
    try:
        row = json.loads(line)
        turns = row["turns"] if "turns" in row else [row["text"]]
        labels = row["labels"] if "labels" in row else [] if row["label"] is None else [row["label"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"line {number}: expected text or turns, and label or labels, found {error!r}") from error
    for what in (turns, labels):
        if not isinstance(what, list) or not all(isinstance(text, str) and text.strip() for text in what):
            raise ValueError(f"line {number}: expected texts, found {what!r}")
    if not turns:
        raise ValueError(f"line {number}: expected something said, found nothing")
    tools = frozenset(labels) - NOTHING
    leading = tuple(LabelledUtterance(text, None) for text in turns[:-1])
    kind = "+".join(sorted(tools)) or "nothing"
    return ToolCase(f"line-{number}", kind, (*leading, LabelledUtterance(turns[-1], tools)))
