"""The `tools` of a request: which of the classifier's it may be answered with."""

from __future__ import annotations

from collections.abc import Collection

from runtime.wire.fields import shown
from runtime.wire.openai.errors import invalid, invalid_type


def read_tools(tools: object, choice: object, known: Collection[str]) -> frozenset[str]:
    """The tools that a request offers, of those that the server `known`s; none where it wants no decision.

    Raises:
        ApiError: a tool that the server cannot decide on, or a choice that it cannot make.
    """
    if tools is not None and not isinstance(tools, list):
        raise invalid_type("tools", "an array", tools)
    names = [_name(f"tools[{index}]", tool) for index, tool in enumerate(tools or ())]
    if not _decides(choice, offered=bool(names)):
        return frozenset()
    for index, name in enumerate(names):
        if name not in known:
            expected = f"one of {', '.join(sorted(known))}" if known else "no tool, since this server decides on none"
            text = f"tools[{index}].function.name: expected {expected}, found {shown(name)}"
            raise invalid(f"tools[{index}].function.name", text, "unsupported_tool")
    for index, tool in enumerate(tools or ()):
        _check_parameters(f"tools[{index}].function.parameters", tool["function"].get("parameters"))
    return frozenset(names)


def _name(path: str, tool: object) -> str:
    if not isinstance(tool, dict):
        raise invalid_type(path, "an object", tool)
    if tool.get("type") != "function":
        found = shown(tool.get("type"))
        raise invalid(f"{path}.type", f"{path}.type: expected function, found {found}", "unsupported_tool")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise invalid_type(f"{path}.function", "an object", function)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise invalid_type(f"{path}.function.name", "a string that is not empty", name)
    return name


def _check_parameters(path: str, parameters: object) -> None:
    """Refuse what a call without arguments would not fit."""
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise invalid_type(path, "an object", parameters)
    if parameters.get("required"):
        text = f"{path}.required: expected nothing, since the classifier's calls have no arguments"
        raise invalid(f"{path}.required", text, "unsupported_tool")


def _decides(choice: object, *, offered: bool) -> bool:
    """Whether a decision is wanted."""
    if choice is None or choice == "auto":
        return offered
    if choice == "none":
        return False
    if isinstance(choice, (str, dict)):
        text = f"tool_choice: expected auto or none, found {shown(choice)}; the classifier decides what is called"
        raise invalid("tool_choice", text, "unsupported_value")
    raise invalid_type("tool_choice", "auto or none", choice)
