"""Processor time: of the whole machine, to find a quiet moment, and of single processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

BUSY: Final = 0.15
"""A machine whose cores are used less than this is quiet."""

WINDOW_SECONDS: Final = 0.15
PATIENCE_SECONDS: Final = 3.0


def busy_of(before: str, after: str) -> float:
    """The fraction of all cores' time that was used between two readings of ``/proc/stat``."""

    def read(text: str) -> tuple[int, int]:
        # user nice system idle iowait irq softirq steal; guest times are in user's (proc(5)).
        ticks = [int(value) for value in text.splitlines()[0].split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]

    (total_before, idle_before), (total_after, idle_after) = read(before), read(after)
    total = total_after - total_before
    return 1 - (idle_after - idle_before) / total if total > 0 else 0.0


def measure_busy(seconds: float) -> float:
    """How busy the machine is, 0 to 1, over some seconds."""
    stat = Path("/proc/stat")
    before = stat.read_text()
    time.sleep(seconds)
    return busy_of(before, stat.read_text())


@dataclass
class Gate:
    """Waits for a quiet machine, but not for ever: `budget` seconds in the whole run.

    A sample that is taken on a busy machine all the same is counted.
    """

    budget: float
    busy: Callable[[float], float] = measure_busy
    clock: Callable[[], float] = time.monotonic
    waited: float = 0.0
    passed: int = 0
    noisy: int = 0

    def wait(self) -> bool:
        """Whether the machine was quiet in the end."""
        begun = self.clock()
        patience = min(PATIENCE_SECONDS, self.budget - self.waited)
        while (quiet := self.busy(WINDOW_SECONDS) < BUSY) is False:
            if self.clock() - begun >= patience:
                break
        self.waited += self.clock() - begun
        self.passed += 1
        self.noisy += not quiet
        return quiet


@dataclass(frozen=True)
class Scheduled:
    """Seconds that threads ran on a core, and that they could have run while none was theirs."""

    ran: float
    waited: float

    def since(self, before: Scheduled) -> Scheduled:
        """What came to it since."""
        return Scheduled(self.ran - before.ran, self.waited - before.waited)


def scheduled(pids: Iterable[int], proc: Path = Path("/proc")) -> Scheduled:
    """Of all threads of the processes, since each began."""
    ran = waited = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in (proc / f"{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    # Nanoseconds on a core, waiting, and slices (Linux: scheduler/sched-stats).
                    words = (task / "schedstat").read_text().split()
                    ran, waited = ran + int(words[0]), waited + int(words[1])
    return Scheduled(ran / 1e9, waited / 1e9)


def of_processes(pids: Iterable[int]) -> float:
    """Seconds that all threads of the processes have run on a core."""
    return scheduled(pids).ran


@dataclass
class Usage:
    """How much of one core the processes take in a span of time."""

    pids: list[int]
    clock: Callable[[], float] = time.monotonic
    _begun: float = field(init=False)
    _used: float = field(init=False)

    def __post_init__(self) -> None:
        self._begun, self._used = self.clock(), of_processes(self.pids)

    def percent(self) -> float:
        """Per cent of one core since this was made."""
        return (of_processes(self.pids) - self._used) / (self.clock() - self._begun) * 100


def tasks(pid: int) -> int:
    """The threads of a process; 0 when it has ended."""
    return _entries(Path(f"/proc/{pid}/task"))


def open_files(pid: int) -> int:
    """The open files of a process; 0 when it has ended."""
    return _entries(Path(f"/proc/{pid}/fd"))


def _entries(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return len(list(folder.iterdir()))
    return 0
