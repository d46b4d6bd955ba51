"""How a command ends: its exit code, and one line for what went wrong.

0 done; 1 a stage failed; 64 the request is wrong; 65 a gate failed; 70 a fault of the pipeline itself, whose traceback
lies in a file; 74 standard output cannot be written; 130 interrupted; 141 nobody reads the output any more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.problem import WrongRequestError, printable
from pipeline.stages.stage import StageError
from runtime.artifact import ArtifactError
from runtime.command import (
    FAULT,
    GONE,
    INTERRUPTED,
    UNREAD,
    UNWRITTEN,
    WRONG_REQUEST,
    CommandGroup,
    ending,
    is_adrift,
    say,
)

__all__ = [
    "FAILED_GATE",
    "FAILED_STAGE",
    "FAULT",
    "INTERRUPTED",
    "UNREAD",
    "UNWRITTEN",
    "WRONG_REQUEST",
    "CommandGroup",
    "check_footing",
    "exit_codes",
]

FAILED_GATE, FAILED_STAGE = os.EX_DATAERR, 1


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn each error into one line and its exit code."""
    with ending("yap-pipeline", prefix="error: ", part="pipeline", kept="finished stages are kept"):
        try:
            yield
        except WrongRequestError as error:
            for problem in error.problems:
                say(f"error: {problem}")
            sys.exit(WRONG_REQUEST)
        except (StageError, ArtifactError) as error:
            say(f"error: {printable(str(error))}")
            sys.exit(FAILED_STAGE)
        except KeyboardInterrupt:
            _say_interrupted()
            sys.exit(INTERRUPTED)
        except SystemExit as error:
            if error.code == INTERRUPTED:
                _say_interrupted()
            raise


def check_footing() -> None:
    """Refuse to begin work from a folder that is gone: what loads models cannot even be imported there."""
    if is_adrift():
        say(f"error: {GONE}")
        sys.exit(WRONG_REQUEST)


def _say_interrupted() -> None:
    say("interrupted; finished stages are kept, the same command goes on from there")
