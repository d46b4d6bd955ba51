#!/usr/bin/env python3
"""One turn with a server: prints `speaking` at its first token, and at its end what came. Run inside the image.

python spoken.py URL KEY [--tokens N]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.client import Options, TurnRecord, connect
from yap_client import Token


async def speak(url: str, key: str, tokens: int) -> bool:
    """Say one thing and hear the reply out."""
    options = Options(url=url, api_key=key, sampling={"temperature": 0.7, "max_tokens": tokens})
    heard = 0
    async with connect(options, persona="You tell long stories.") as talk:
        turn = TurnRecord(talk.say("Tell me a story about a lighthouse."))
        async for event in turn:
            if isinstance(event, Token):
                if not heard:
                    print("speaking", flush=True)
                heard += 1
    print(turn.report(""), flush=True)
    print(f"text: {turn.text[:200]!r}", flush=True)
    if turn.problem:
        print(f"problem: {turn.problem}", flush=True)
    return turn.ok


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("key")
    parser.add_argument("--tokens", type=int, default=120)
    arguments = parser.parse_args()
    sys.exit(0 if asyncio.run(speak(arguments.url, arguments.key, arguments.tokens)) else 1)


if __name__ == "__main__":
    main()
