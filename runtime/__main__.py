"""`python -m runtime`, and the console script.

Importing what serves takes a second or two, in which a signal would end the process as if it had failed. So signals are
taken first: nobody is connected yet, and leaving is all that there is to do.
"""

import os
import signal
import sys


def _leave(number: int, frame: object) -> None:
    os._exit(0)


def _serves(arguments: list[str]) -> bool:
    return not arguments or arguments == ["serve"]


def main() -> None:
    """Run the program."""
    if _serves(sys.argv[1:]):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
    try:
        from runtime import cli
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    cli.main()


if __name__ == "__main__":
    main()
