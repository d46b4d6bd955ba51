"""In vLLM's workers: how attention is chosen, how weights are read, and what is imported for it."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import count
from types import ModuleType
from typing import Any

from runtime.engines.vllm.contract.table import (
    CUTE,
    MANY_CORES,
    ONE_CORE,
    PLATFORM,
    PRIORITIES,
    ROUTER_SHAPES,
    ROUTERS,
    TILES,
    VALID,
    seams,
)

log = logging.getLogger(__name__)


def look_for_the_first_attention() -> None:
    """Have vLLM look at kernels of attention in its order, and no further than to the first that will do.

    It looks at all of them and takes the first, and to look at one is to import it.
    """
    try:
        module = importlib.import_module("vllm.platforms.cuda")
        platform, every = getattr(module, PLATFORM), getattr(module, PRIORITIES)
        valid = vars(platform)[VALID].__func__
    except (ImportError, OSError, AttributeError, KeyError) as error:
        seams.give_up("first attention", repr(error))
        return

    @wraps(valid)
    def first(cls: Any, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - vLLM's own
        for most in count(1):
            known: list[int] = []

            def some(*about: Any, most: int = most, known: list[int] = known, **more: Any) -> Any:  # noqa: ANN401
                found = every(*about, **more)
                known.append(len(found))
                return found[:most]

            setattr(module, PRIORITIES, some)
            try:
                will_do, reasons = valid(cls, *given, **named)
            finally:
                setattr(module, PRIORITIES, every)
            if will_do or most >= max(known, default=0):
                return will_do, reasons

    setattr(platform, VALID, classmethod(first))


def import_no_unused_kernels() -> None:
    """Have CuTeDSL and TileLang imported where a kernel of theirs is used, and not to find out that none is.

    At the end of a start vLLM watches what they compile, and before it warms the one's kernels for routers of experts:
    for both it imports them first. A package that nothing has imported until then compiles nothing for this model.
    """
    try:
        monitor = importlib.import_module("vllm.utils.jit_monitor")
        watch = getattr(monitor, CUTE)
    except (ImportError, OSError, AttributeError) as error:
        seams.give_up("unused kernels", repr(error))
        return
    setattr(monitor, CUTE, _if_imported("cutlass", watch))
    # What follows, older releases do not have, nor the imports.
    if (watch := getattr(monitor, TILES, None)) is not None:
        setattr(monitor, TILES, _if_imported("tilelang", watch))
    try:
        _warm_no_absent_routers(importlib.import_module("vllm.model_executor.warmup.kernel_warmup"))
    except (ImportError, OSError) as error:
        seams.give_up("unused kernels", repr(error))


def _if_imported(package: str, watch: Callable[[], None]) -> Callable[[], None]:
    @wraps(watch)
    def look() -> None:
        if sys.modules.get(package) is not None:
            watch()

    return look


def _warm_no_absent_routers(warming: ModuleType) -> None:
    warm, shapes = getattr(warming, ROUTERS, None), getattr(warming, ROUTER_SHAPES, None)
    if warm is None or shapes is None:
        return

    @wraps(warm)
    def look(model: Any) -> None:  # noqa: ANN401 - vLLM's own
        if shapes(model):
            warm(model)

    setattr(warming, ROUTERS, look)


def read_on_one_core_else() -> None:
    """Have weights read on one core where the package that reads them on many fails before the first of them.

    It may: a file system that is not known to it, or a container that forbids what it does.
    """
    try:
        loader = importlib.import_module("vllm.model_executor.model_loader.default_loader")
        many, one = getattr(loader, MANY_CORES), getattr(loader, ONE_CORE)
    except (ImportError, AttributeError) as error:
        seams.give_up("weights on many cores", repr(error))
        return

    def weights(files: list[str], bar: bool) -> Iterator[tuple[str, Any]]:
        read = iter(many(files, bar))
        try:
            first = next(read, None)
        except Exception as error:  # whatever the package met, another way is known
            if _ranks_share():
                raise  # the others wait for this one, which would go its own way
            log.warning("weights are read on one core, since on many it failed: %s", repr(error))
            del read  # and with the error, what was held for it
        else:
            if first is not None:
                yield first
                del first  # it may be the largest of all, and a copy of its own
                yield from read
            return
        yield from one(files, bar)

    setattr(loader, MANY_CORES, weights)


def _ranks_share() -> bool:
    import torch.distributed as ranks

    return bool(ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 1)
