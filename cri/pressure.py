"""Memory pressure of the host: what the kernel says of it, and when it has begun and is over.

`Memory` reads proc(5)'s meminfo and, where the kernel has it, pressure stall information
(Documentation/accounting/psi.rst); `Pressure` judges, without clock or host.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")

SCARCE: Final = 4
"""Stalls count while less than so many times the least available memory is available. Tasks of a
control group that is at its own limit stall too, and the host's total has them."""

_STALLED: Final = re.compile(r"^some .*\btotal=(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """The memory of the host, in MiB; `stalled` is the share, 0 to 1, of the time since the reading
    before in which some task waited for memory, 0 where the kernel does not say."""

    total_mib: int
    available_mib: int
    stalled: float = 0.0


class Memory:
    """The files below `proc`. Reading takes well under a millisecond."""

    def __init__(self, proc: Path = PROC, clock: Callable[[], float] = time.monotonic) -> None:
        self._proc = proc
        self._clock = clock
        self._stalled: tuple[float, int] | None = None

    def read(self) -> Reading | None:
        """The memory now; None where the kernel does not tell it."""
        text = self._text("meminfo")
        sizes = dict(re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE))
        try:
            total, available = int(sizes["MemTotal"]), int(sizes["MemAvailable"])
        except KeyError:
            return None
        return Reading(total // 1024, available // 1024, self._share())

    def _share(self) -> float:
        match = _STALLED.search(self._text("pressure/memory"))
        if match is None:
            return 0.0
        now, total = self._clock(), int(match[1])
        before, self._stalled = self._stalled, (now, total)
        if before is None or now <= before[0]:
            return 0.0
        return min(1.0, max(0.0, (total - before[1]) / 1e6 / (now - before[0])))

    def _text(self, name: str) -> str:
        try:
            # A few kilobytes, always.
            return (self._proc / name).read_text(errors="replace")
        except OSError:
            return ""


@dataclass(frozen=True)
class Thresholds:
    """When memory is short: below `min_available_percent` of it, or stalled for more than
    `max_stall_percent` of the time; 0 asks for neither. It must be over for `relief_seconds`."""

    min_available_percent: int = 5
    max_stall_percent: int = 10
    relief_seconds: float = 60.0


class Pressure:
    """Begins with one bad reading, and ends when all were good for a while."""

    def __init__(self, thresholds: Thresholds) -> None:
        self.reason = ""
        """Why there is pressure, for people; empty while there is none."""
        self._thresholds = thresholds
        self._calm_since: float | None = None

    def update(self, reading: Reading, now: float, room_mib: int) -> None:
        """Judge a reading. Pressure does not end before `room_mib`, which the pool will take then,
        would leave enough: it would begin again at once."""
        if found := self._judge(reading, 0):
            self.reason, self._calm_since = found, None
        elif self.reason:
            if self._judge(reading, room_mib):
                self._calm_since = None
                return
            if self._calm_since is None:
                self._calm_since = now
            if now - self._calm_since >= self._thresholds.relief_seconds:
                self.reason, self._calm_since = "", None

    def _judge(self, reading: Reading, room_mib: int) -> str:
        least = reading.total_mib * self._thresholds.min_available_percent // 100
        if least and reading.available_mib - room_mib < least:
            return (
                f"{reading.available_mib} MiB of memory are available, less than {least}"
                f" (pool.min_available_percent)"
            )
        stalled, most = reading.stalled * 100, self._thresholds.max_stall_percent
        scarce = not least or reading.available_mib < SCARCE * least
        if most and stalled > most and scarce:
            return f"tasks wait for memory {stalled:.0f} % of the time (pool.max_stall_percent)"
        return ""
