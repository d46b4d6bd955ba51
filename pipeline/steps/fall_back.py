"""Falling back on the engine's plain options: where a stage fails with tuned ones, it is done once without.

What was refused is kept in the cache, so that a run that ends before the plain options are through goes on with them.
Where these fail too, the options were not why: nothing is kept, and the plain options' failure is told.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pipeline.problem import LONGEST_FOUND, printable
from pipeline.stages.disk import os_error_in
from pipeline.stages.stage import StageError, StageResult, key_of
from pipeline.steps.stage_runner import StageRunner, Work
from runtime.artifact import EngineChoices, RefusedOptions, TunedOptions

T = TypeVar("T")

# The stage that keeps a refusal.
REFUSAL = "refusal"
PLAIN = EngineChoices()
# What no choice of the engine's options changes.
OF_THE_MACHINE = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.EACCES,
        errno.EPERM,
        errno.EMFILE,
        errno.ENFILE,
    }
)
# As the engine's own processes word it.
DISK_FULL = os.strerror(errno.ENOSPC)


class RefusedError(Exception):
    """A stage failed with tuned options."""

    def __init__(self, refused: RefusedOptions) -> None:
        self.refused = refused
        super().__init__(refused.reason)


class FallBack:
    """One run's attempts: the first with the options that were tuned, and where they are refused, one without.

    Attributes:
        refused: the options that this run does without, and why; none yet, or none at all.
    """

    def __init__(self, runner: StageRunner) -> None:
        self._runner = runner
        self._kept: Mapping[str, Any] | None = None  # what the refusal is kept for
        self.refused: RefusedOptions | None = None

    def left(self, tuned: TunedOptions | None) -> TunedOptions | None:
        """Tuned options without what this run has refused of them."""
        if tuned is None or self.refused is None:
            return tuned
        return tuned.model_copy(update={"choices": PLAIN, "refused": self.refused})

    def attempt(self, make: Callable[[], T]) -> T:
        """Make something with the tuned options, and where a stage refuses them, with the plain ones.

        Raises:
            Exception: what `make` raised without any options, or for a reason that is not theirs.
        """
        before = len(self._runner.finished)
        try:
            return make()
        except RefusedError as error:
            self.refused = refused = error.refused
        # What was made with them is no part of the artifact; what is the same for both is found again.
        finished = self._runner.finished
        finished[before:] = [done for done in finished[before:] if done.name not in ("build", "validate")]
        self._runner.progress.step(
            f"{refused.stage} refused the tuned options ({refused.options.text}): {refused.reason}; "
            "going on with the engine's plain ones"
        )
        try:
            return make()
        except Exception as error:
            if self._kept is not None and not of_the_machine(error):
                self._runner.forget(REFUSAL, self._kept)
            raise

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        work: Work,
        options: EngineChoices,
        excused: Callable[[Exception], bool] = lambda error: False,
    ) -> StageResult:
        """Run a stage in which the engine runs, or would, with such options.

        Args:
            name: of the stage.
            inputs: its inputs.
            work: its work.
            options: what was tuned.
            excused: whether a failure has nothing to do with the chat model's engine.

        Raises:
            RefusedError: it failed, or did so before, with options that were tuned.
            Exception: it failed without any, or for a reason that is not theirs.
        """
        if options == PLAIN:
            return self._runner.stage(name, inputs, work)
        self._kept = {"of": key_of(name, inputs)}
        if (known := self._runner.known(REFUSAL, self._kept)) is not None:
            raise RefusedError(RefusedOptions.model_validate({**known.result, "options": options}))
        try:
            return self._runner.stage(name, inputs, work)
        except Exception as error:
            if of_the_machine(error) or excused(error):
                raise
            told = {"stage": name, "reason": printable(_reason(error), LONGEST_FOUND)}
            self._runner.keep(REFUSAL, self._kept, told)
            raise RefusedError(RefusedOptions.model_validate({**told, "options": options})) from error


def of_the_machine(error: BaseException) -> bool:
    """Whether an error says that the disk is full, or may not be written or read: no option of the engine's."""
    for one in _causes(error):
        refused = os_error_in(one)
        if (refused is not None and refused.errno in OF_THE_MACHINE) or DISK_FULL in str(one):
            return True
    return False


def _reason(error: Exception) -> str:
    if isinstance(error, StageError):  # what the user was to do now is done
        return f"{error.what} ({error.where})" if error.where else error.what
    return str(error) or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
