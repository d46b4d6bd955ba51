"""The labels of a classifier, as its config names them, and which of them says yes.

A label's name is read word by word, so that `no_screenshot`, `nonScreen` and `not on screen` are not taken for a yes.
What could be read in two ways is refused: the user says it then.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence

# What an answer yes is called, beside names that hold `screen`.
AFFIRMATIVE = frozenset({"yes", "y", "positive", "pos", "true"})
# Words that turn a name into its opposite. The commonest of other languages are among them.
NEGATIONS = frozenset(
    (
        *("no", "non", "not", "n", "none", "never", "nothing", "neither", "nor", "without", "cannot", "minus", "zero"),
        *("false", "negative", "neg", "anti", "counter", "opposite", "against", "other", "irrelevant", "off", "out"),
        *("absent", "missing", "lacks", "lacking", "less", "free", "except", "unless", "avoid", "skip", "skipped"),
        *("ignore", "ignored", "refuse", "refused", "reject", "rejected", "deny", "denied", "disable", "disabled"),
        *("exclude", "excluded", "kein", "keine", "nein", "nicht", "ohne", "pas", "sans", "sin", "ninguno", "nao"),
        *("sem", "niet", "geen", "bez", "nie", "ikke", "inte", "нет", "не", "без"),
    )
)
# Words that may turn a name into its opposite, or tell of something else: with them a yes is none that is certain.
DOUBTS = frozenset(
    (
        *("stop", "end", "ended", "close", "closed", "cancel", "cancelled", "canceled", "abort", "quit", "finish"),
        *("hide", "hidden", "block", "blocked", "prevent", "forbid", "forbidden", "prohibit", "prohibited", "banned"),
        *("remove", "removed", "delete", "deleted", "drop", "dismiss", "decline", "declined", "hardly", "rarely"),
        *("barely", "maybe", "perhaps", "possibly", "sometimes", "invalid", "impossible", "inactive", "incorrect"),
        *("inapplicable", "wrong", "fail", "failed", "failure", "fake", "bad", "broken", "null", "void"),
        # Of one that is there already, or of something else in its place.
        *("already", "taken", "done", "attached", "provided", "sent", "given", "received", "shared", "uploaded"),
        *("included", "existing", "previous", "earlier", "old", "was", "had", "after", "instead", "rather", "only"),
        *("replace", "replaced", "substitute", "alternative", "alternatively", "versus", "vs"),
    )
)
OTHER_SCREEN = re.compile(
    r"(silk|sun|wind|smoke|touch)screens?|screen(saver|time|play|writer|printing|ing|ings|ed|er)s?"
)
NEGATING_PREFIX = re.compile(
    r"(non|not|no|anti|off|de)(?=screen|yes|positive|true)|un(?!der|til|i)(?=...)|dis(?=able|allow)"
)
NEGATING_SUFFIX = re.compile(r"screen(shot)?s?(less|free)$")
CONTRACTION = re.compile(
    r"(is|are|do|does|did|wo|ca|should|would|could|has|have|had|need|was|were|must)nt|\w+[sd]n|(are|were)n"
)
MARK_OF_NEGATION = re.compile(r"[!¬~≠]")
# More than anybody would tell apart without names for them.
MOST_LABELS = 1000
CASE_CHANGE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class LabelsError(ValueError):
    """The labels cannot be understood; the message says what was found."""


class Meaning(enum.Enum):
    """The meaning of a label's name."""

    YES = "yes"
    NO = "no"
    OTHER = "other"
    UNCLEAR = "unclear"


def labels_of(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the labels in the order of the logits; `LABEL_0` and so on where none are named.

    Raises:
        LabelsError: they are not numbered from zero, or the two tables of the config contradict each other.
    """
    by_index, by_name = config.get("id2label"), config.get("label2id")
    if isinstance(by_index, Sequence) and not isinstance(by_index, str):
        by_index = dict(enumerate(by_index))
    table = _numbered(by_index) if isinstance(by_index, Mapping) and by_index else None
    turned = _turned(by_name) if isinstance(by_name, Mapping) and _fits(by_name, table) else None
    if table and turned and table != turned:
        raise LabelsError(f"id2label {list(table)} and label2id {list(turned)}")
    if found := table or turned:
        return found
    count = config.get("num_labels")
    if isinstance(count, int) and count > MOST_LABELS:
        raise LabelsError(f"{count} labels without names")
    return tuple(f"LABEL_{index}" for index in range(count if isinstance(count, int) and count > 0 else 2))


def meaning_of(label: str) -> Meaning:
    """Tell what a label's name says of a look at the screen.

    >>> [meaning_of(label).value for label in ("take_screenshot", "noScreenshot", "unrelated", "chat")]
    ['yes', 'no', 'no', 'other']
    """
    words = re.findall(r"[^\W_]+", CASE_CHANGE.sub(" ", re.sub(r"['’`]", "", label)).lower())
    affirmative = any("screen" in word or word in AFFIRMATIVE or _untrue(word) for word in words)
    negations = sum(_negates(word) for word in words) + len(MARK_OF_NEGATION.findall(label))
    doubtful = any(word in DOUBTS or OTHER_SCREEN.fullmatch(word) for word in words)
    if affirmative and (negations > 1 or (doubtful and not negations)):
        return Meaning.UNCLEAR
    if negations:
        return Meaning.NO
    return Meaning.YES if affirmative else Meaning.OTHER


def is_unnamed(label: str) -> bool:
    """Whether a label is only a number, as transformers names those that nobody named.

    >>> is_unnamed("LABEL_1"), is_unnamed("2"), is_unnamed("play_music")
    (True, True, False)
    """
    return re.fullmatch(r"(label[\W_]*)?\d+", label.strip(), re.IGNORECASE) is not None


def positive_label(labels: Sequence[str]) -> int | None:
    """Return the index of the one label that says yes; none where there is none, or more than one could."""
    meanings = [meaning_of(label) for label in labels]
    if meanings.count(Meaning.YES) != 1 or Meaning.UNCLEAR in meanings:
        return None
    return meanings.index(Meaning.YES)


def named_label(labels: Sequence[str], name: str) -> int:
    """Return the index of a label that a user named, by its name or its index.

    Raises:
        LabelsError: there is none, or the name fits more than one.
    """
    exact = {index for index, label in enumerate(labels) if label == name}
    fitting = exact or {index for index, label in enumerate(labels) if label.casefold() == name.strip().casefold()}
    if re.fullmatch(r"\d{1,9}", name) and int(name) < len(labels):
        fitting = fitting | {int(name)}
    if len(fitting) != 1:
        raise LabelsError(f"{name!r}, which fits {'none' if not fitting else 'more than one'} of {told(labels)}")
    return fitting.pop()


def told(labels: Sequence[str]) -> str:
    """Word the labels with their indices.

    >>> told(["no", "yes"])
    "0 'no', 1 'yes'"
    """
    return ", ".join(f"{index} {label!r}" for index, label in enumerate(labels))


def _fits(by_name: Mapping[object, object], table: tuple[str, ...] | None) -> bool:
    """Whether `label2id` speaks of the same labels; one that was left from another training says nothing."""
    return bool(by_name) and (table is None or {str(name) for name in by_name} == set(table))


def _turned(by_name: Mapping[object, object]) -> tuple[str, ...]:
    turned: dict[object, object] = {str(number): name for name, number in by_name.items()}
    if len(turned) < len(by_name):
        raise LabelsError(f"label2id {dict(by_name)}")
    return _numbered(turned)


def _numbered(table: Mapping[object, object]) -> tuple[str, ...]:
    numbered: dict[int, str] = {}
    for key, name in table.items():
        if isinstance(key, bool) or not re.fullmatch(r"\d{1,9}", str(key)) or not isinstance(name, str | int):
            raise LabelsError(f"{key!r}: {name!r}")
        numbered[int(str(key))] = str(name)
    if sorted(numbered) != list(range(len(table))):
        raise LabelsError(f"the indices {sorted(numbered)}")
    return tuple(numbered[index] for index in range(len(table)))


def _negates(word: str) -> bool:
    return bool(
        word in NEGATIONS or NEGATING_PREFIX.match(word) or NEGATING_SUFFIX.search(word) or CONTRACTION.fullmatch(word)
    )


def _untrue(word: str) -> bool:
    """Whether it is a negated affirmative in one word, such as `untrue`."""
    prefix = NEGATING_PREFIX.match(word)
    return prefix is not None and word[prefix.end() :] in AFFIRMATIVE
