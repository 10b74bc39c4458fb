"""One figure of a part, and the processor time that it is mostly about."""

from __future__ import annotations

import gc
import resource
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

ROUNDS: Final = 5


@dataclass(frozen=True)
class Figure:
    """What one pod costs on a node with so many, in `unit`: a time on a processor in ``us`` or
    ``ms``, else something that is counted."""

    name: str
    value: float
    unit: str

    @property
    def is_time(self) -> bool:
        return self.unit in ("us", "ms")


def used() -> float:
    """Seconds of processor time of this process, its threads, and its children that have ended."""
    return sum(
        found.ru_utime + found.ru_stime
        for found in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def seconds(work: Callable[[], object], times: int) -> float:
    """Processor seconds of one `work`: `times` in a row, the cheapest of some rounds."""
    found = []
    for _ in range(ROUNDS):
        gc.collect()
        begun = used()
        for _ in range(times):
            work()
        found.append((used() - begun) / times)
    return min(found)


async def seconds_of(work: Callable[[], Awaitable[object]], times: int) -> float:
    """The same of a coroutine function."""
    found = []
    for _ in range(ROUNDS):
        gc.collect()
        begun = used()
        for _ in range(times):
            await work()
        found.append((used() - begun) / times)
    return min(found)
