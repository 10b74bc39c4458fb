"""How many VMs are to wait: as many as the largest burst of late would have taken.

Nothing here knows of VMs, clocks or the host: times come as arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from cri.config import Pool as Settings
from cri.pressure import Thresholds

HALF_LIFE: Final = 600.0
"""Seconds in which the memory of a burst halves: bursts that come every few minutes are met, and a
day's single one is forgotten within the hour."""

FIRST_GUESS: Final = 1.0
"""Seconds that a restore is taken to need before one was seen."""

NEWEST: Final = 0.2
"""The weight of the newest restore in the average."""


@dataclass(frozen=True)
class Limits:
    """What bounds the pool. `size` VMs wait on a quiet node, up to `max_size` on a busy one, both
    no more than `max_memory_mib` hold at `reserve_mib` each. `parallel` are restored for the pool
    at a time, `on_the_spot` for pods that found it empty."""

    size: int
    max_size: int = 0
    parallel: int = 1
    on_the_spot: int = 4
    max_memory_mib: int = 4096
    reserve_mib: int = 64
    pressure: Thresholds = field(default_factory=Thresholds)

    @property
    def floor(self) -> int:
        """How many wait on a quiet node: fewer than `size` where memory is the limit."""
        return min(self.size, self.max_memory_mib // self.reserve_mib)

    @property
    def ceiling(self) -> int:
        """How many wait at most."""
        return max(self.floor, min(self.max_size, self.max_memory_mib // self.reserve_mib))


def limits(pool: Settings, cpus: int, memory_mib: int) -> Limits:
    """The settings of a host of so many processors and so much memory: what is 0 is chosen here.

    A processor starts a few pods a second at most, so that bursts, and what is ready for them, go
    by their number; an eighth of the memory is what pods are likely to leave.
    """
    return Limits(
        size=pool.size,
        max_size=pool.max_size or (4 * cpus if pool.size else 0),
        parallel=pool.parallel or max(1, cpus // 8),
        on_the_spot=pool.on_the_spot or 2 * cpus,
        max_memory_mib=pool.max_memory_mib or memory_mib // 8,
        reserve_mib=pool.reserve_mib,
        pressure=Thresholds(
            pool.min_available_percent, pool.max_stall_percent, pool.relief_seconds
        ),
    )


class PoolSize:
    """Learns from arrivals and restores how many VMs should wait.

    Each pod takes a VM, and `parallel` restores at a time bring VMs back: what is taken and not
    back is a backlog, and a pool as large as its peak lets no pod wait. The peak is forgotten
    with `half_life`.
    """

    def __init__(
        self, floor: int, ceiling: int, parallel: int, *, half_life: float = HALF_LIFE
    ) -> None:
        self._floor, self._ceiling = floor, max(floor, ceiling)
        self._parallel = parallel
        self._half_life = half_life
        self._restore = FIRST_GUESS
        self._backlog = 0.0
        self._peak = 0.0
        self._at = 0.0

    def arrived(self, now: float) -> None:
        """A pod asks for a VM."""
        self._pass(now)
        # What exceeds the ceiling would only make the memory of it last longer.
        self._backlog = min(self._backlog + 1, float(self._ceiling))
        self._peak = max(self._peak, self._backlog)

    def forget(self) -> None:
        """Begin anew: what was learnt led to more than the host has."""
        self._backlog = self._peak = 0.0

    def restored(self, seconds: float) -> None:
        """A VM was made for the pool in so many seconds."""
        self._restore += NEWEST * (seconds - self._restore)

    def wanted(self, now: float) -> int:
        """How many VMs are to wait, between the floor and the ceiling."""
        self._pass(now)
        # A rest of a millionth is an error of floats, and no VM.
        return min(max(math.ceil(self._peak - 1e-6), self._floor), self._ceiling)

    def _pass(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._at = max(now, self._at)
        back = passed * self._parallel / max(self._restore, 1e-3)
        self._backlog = max(0.0, self._backlog - back)
        self._peak *= 0.5 ** (passed / self._half_life)
