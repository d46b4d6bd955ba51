"""The `messages` of a request: who said what, and what tools answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from runtime.wire.fields import shown
from runtime.wire.openai.errors import ApiError, invalid, invalid_type

ROLES = ("system", "developer", "user", "assistant", "tool")
# What a part of a message may be; `refusal` is an assistant's.
_TEXT_PARTS = {"text": "text", "refusal": "refusal"}


@dataclass(frozen=True, slots=True)
class Said:
    """One message that is no instruction.

    Attributes:
        role: whose it is.
        text: its words.
        tool: of a tool's answer, the tool.
    """

    role: Literal["user", "assistant", "tool"]
    text: str
    tool: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said, oldest first, and the instructions for it.

    Attributes:
        system: what the system or the developer said before everybody else.
        later: what they said since.
        said: everything else.
    """

    system: str
    later: str
    said: tuple[Said, ...]


def read_messages(value: object) -> Conversation:
    """Read the field `messages`.

    Raises:
        ApiError: something in it cannot be read, or cannot be served.
    """
    if value is None:
        raise invalid("messages", "messages: expected a list of messages, found nothing", "missing_required_parameter")
    if not isinstance(value, list):
        raise invalid_type("messages", "an array of messages", value)
    if not value:
        raise invalid("messages", "messages: expected at least one message, found an empty array", "empty_array")
    system: list[str] = []
    later: list[str] = []
    said: list[Said] = []
    called: dict[str, str] = {}  # tools by the id of their call
    for index, message in enumerate(value):
        if (plain := _plain(message)) is not None:
            said.append(plain)
            continue
        path = f"messages[{index}]"
        if not isinstance(message, dict):
            raise invalid_type(path, "an object", message)
        role = message.get("role")
        if role not in ROLES:
            raise _wrong_role(path, role)
        if role in ("system", "developer"):
            if text := _content(path, message):
                (later if said else system).append(text)
        elif role == "user":
            said.append(Said("user", _content(path, message)))
        elif role == "tool":
            said.append(_tool_answer(path, message, called))
        else:
            called.update(_calls(path, message))
            if text := _reply(path, message):
                said.append(Said("assistant", text))
    return Conversation("\n\n".join(system), "\n\n".join(later), tuple(said))


def _plain(message: object) -> Said | None:
    """A message as nearly all of a long conversation are; none where there is more to look at."""
    if isinstance(message, dict) and len(message) == 2:
        role, text = message.get("role"), message.get("content")
        if isinstance(text, str) and text and (role == "user" or role == "assistant"):
            return Said(role, text)
    return None


def _wrong_role(path: str, role: object) -> ApiError:
    expected = ", ".join(ROLES)
    if role == "function":
        return invalid(f"{path}.role", f"{path}.role: functions are not supported; use tools, and the role tool")
    if not isinstance(role, str):
        return invalid_type(f"{path}.role", f"one of {expected}", role)
    return invalid(f"{path}.role", f"{path}.role: expected one of {expected}, found {shown(role)}")


def _content(path: str, message: dict[str, object], parts: Sequence[str] = ("text",)) -> str:
    """The text of a message: a string, or parts that are text, each on a line of its own."""
    value = message.get("content")
    path = f"{path}.content"
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid_type(path, "a string or an array of parts", value)
    # As vLLM's server joins them: parts are blocks of their own, and words of two may not become one.
    return "\n".join(_part(f"{path}[{index}]", part, parts) for index, part in enumerate(value))


def _part(path: str, part: object, parts: Sequence[str]) -> str:
    if not isinstance(part, dict):
        raise invalid_type(path, "an object", part)
    kind = part.get("type")
    if kind not in parts:
        found = shown(kind)
        text = f"{path}.type: expected {' or '.join(parts)}, found {found}; this server reads text alone"
        raise invalid(f"{path}.type", text, "unsupported_content_type")
    name = _TEXT_PARTS[str(kind)]
    value = part.get(name)
    if not isinstance(value, str):
        raise invalid_type(f"{path}.{name}", "a string", value)
    return value


def _reply(path: str, message: dict[str, object]) -> str:
    """The words of an assistant's message; empty where it called tools and said nothing."""
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            raise invalid(f"{path}.{name}", f"{path}.{name}: not supported", "unsupported_parameter")
    refusal = message.get("refusal")
    if message.get("content") is None:
        if refusal is not None and not isinstance(refusal, str):
            raise invalid_type(f"{path}.refusal", "a string", refusal)
        if refusal is None and not message.get("tool_calls"):
            raise invalid_type(f"{path}.content", "a string, an array of parts, or tool_calls beside it", None)
        return refusal or ""
    return _content(path, message, ("text", "refusal"))


def _calls(path: str, message: dict[str, object]) -> dict[str, str]:
    """The tools that an assistant's message calls, by the id of the call."""
    value = message.get("tool_calls")
    if value is None:
        return {}
    path = f"{path}.tool_calls"
    if not isinstance(value, list):
        raise invalid_type(path, "an array", value)
    found = {}
    for index, call in enumerate(value):
        at = f"{path}[{index}]"
        if not isinstance(call, dict):
            raise invalid_type(at, "an object", call)
        function = call.get("function")
        if call.get("type", "function") != "function" or not isinstance(function, dict):
            raise invalid(f"{at}.type", f"{at}.type: expected a call of a function; no other kind of tool is supported")
        number, name = call.get("id"), function.get("name")
        if not isinstance(number, str):
            raise invalid_type(f"{at}.id", "a string", number)
        if not isinstance(name, str):
            raise invalid_type(f"{at}.function.name", "a string", name)
        found[number] = name
    return found


def _tool_answer(path: str, message: dict[str, object], called: dict[str, str]) -> Said:
    number = message.get("tool_call_id")
    if not isinstance(number, str):
        raise invalid_type(f"{path}.tool_call_id", "a string", number)
    if number not in called:
        text = f"{path}.tool_call_id: expected the id of a call in an assistant's message before it, found none with it"
        raise invalid(f"{path}.tool_call_id", text)
    return Said("tool", _content(path, message), called[number])
