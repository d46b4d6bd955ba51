"""The command-line options that all commands share."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import yap_client
from yap_client import Backoff, Facts, Sampling, Talk

if TYPE_CHECKING:
    from typing_extensions import Unpack

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Options:
    """The options of a run: where to connect, and how to begin a turn.

    Attributes:
        url: the server's WebSocket.
        api_key: none sends no key.
        recv_timeout: seconds of silence before a client gives up.
        chat_prompt: whether a system prompt is sent; not where no chat model is deployed.
        gender: the persona's; none leaves it out.
        personality: the persona's style.
        sampling: fields of `sampling`.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    recv_timeout: float = 60.0
    chat_prompt: bool = True
    gender: str | None = None
    personality: str = "wholesome"
    sampling: Sampling = field(default_factory=Sampling)


def connect(
    options: Options,
    *,
    session: str | None = None,
    sampling: Sampling | None = None,
    backoff: Backoff | None = None,
    **facts: Unpack[Facts],
) -> Talk:
    """Make a client of a run's options; a connection that is lost is a failure, unless there is a `backoff`.

    Args:
        session: the session's name; none for a new one.
        sampling: more of it than the options say.
        facts: what the session keeps; persona and gender as far as the options have nothing to say of them.
    """
    known: Facts = {"style": options.personality, **facts}
    if not options.chat_prompt:
        known["persona"] = None
    if options.gender:
        known["gender"] = options.gender
    return yap_client.connect(
        options.url,
        options.api_key,
        session=session,
        sampling={**options.sampling, **(sampling or {})},
        backoff=backoff,
        silence=options.recv_timeout,
        open_timeout=options.recv_timeout,
        **known,
    )


def websocket_url(server: str) -> str:
    """Complete what people type to a WebSocket address.

    >>> websocket_url("localhost:8000")
    'ws://localhost:8000/ws'
    >>> websocket_url("https://example.com/")
    'wss://example.com/ws'
    """
    for plain, socket in (("https://", "wss://"), ("http://", "ws://")):
        if server.startswith(plain):
            server = socket + server[len(plain) :]
    if "://" not in server:
        server = "ws://" + server
    address, mark, query = server.partition("?")
    address = address.rstrip("/")
    if not address.endswith("/ws"):
        address += "/ws"
    return address + mark + query


class _Help(argparse.HelpFormatter):
    """A help formatter that shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default not in (None, False, argparse.SUPPRESS) and "%(default)" not in (action.help or "")
        return f"{action.help} (default: %(default)s)" if told else action.help


def positive(text: str) -> float:
    """Parse a number above zero, for argparse."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return number


def whole(text: str) -> int:
    """Parse a whole number above zero, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text}")
    return number


def parser(description: str) -> argparse.ArgumentParser:
    """Make an argument parser with the shared options; commands add their own."""
    result = argparse.ArgumentParser(description=description, formatter_class=_Help)
    add = result.add_argument
    # Defaults are texts where they come from the environment, so that argparse checks them like arguments.
    default_url = os.environ.get("SERVER_WS_URL") or "ws://127.0.0.1:8000/ws"
    add("--server", "--url", dest="server", metavar="URL", default=default_url, help="/ws is appended if missing")
    # Not a default: --help would show the key.
    add("--api-key", metavar="KEY", help="else TEXT_API_KEY")
    add(
        "--recv-timeout",
        type=positive,
        metavar="SECONDS",
        default=os.environ.get("RECV_TIMEOUT_SEC") or "60",
        help="silence before giving up",
    )
    add("--no-chat-prompt", action="store_true", help="send no system prompt (implied for tool-only deployments)")
    add("--gender", default=os.environ.get("GENDER") or None, help="woman, man, female or male")
    personality = os.environ.get("PERSONALITY") or os.environ.get("PERSONA_STYLE") or "wholesome"
    add("--personality", "--persona-style", metavar="STYLE", default=personality, help="letters, at most 20")
    for name in SAMPLING:
        dashed = "--" + name.replace("_", "-")
        kind = int if name == "top_k" else float
        add(*dict.fromkeys([f"--{name}", dashed]), dest=name, type=kind, metavar="X", help="sampling override")
    return result


def read_options(arguments: argparse.Namespace) -> Options:
    """Read the shared options from parsed arguments."""
    # A comma-separated list is how the server is given several keys; a client uses the first.
    key = (arguments.api_key or os.environ.get("TEXT_API_KEY") or "").split(",")[0].strip()
    return Options(
        url=websocket_url(arguments.server),
        api_key=key or None,
        recv_timeout=arguments.recv_timeout,
        chat_prompt=not (arguments.no_chat_prompt or _tool_only()),
        gender=arguments.gender,
        personality=arguments.personality,
        sampling={name: getattr(arguments, name) for name in SAMPLING if getattr(arguments, name) is not None},
    )


def _tool_only() -> bool:
    """Tell whether the environment, often the server's too, says that no chat model is deployed."""
    mode, chat = (os.environ.get(name, "").strip().lower() for name in ("DEPLOY_MODE", "DEPLOY_CHAT"))
    return mode == "tool" or chat in ("0", "false", "no", "off")
