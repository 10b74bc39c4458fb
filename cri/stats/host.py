"""What a pod's VM costs its host: QEMU and shim, from their control group and from /proc.

Memory that a VM took before it was bound stays charged to the pool's group, so that what its group
is charged with is not all that it holds: the anonymous memory of the two processes, which is nearly
all of it, is read from themselves. All functions block.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostlib import cgroup

PROC: Final = Path("/proc")
_TICK: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_NO_LIMIT: Final = 2**62


@dataclass(frozen=True)
class HostUsage:
    """Bytes, nanoseconds, counts. `since` is when `cpu_ns` was 0, in nanoseconds since the epoch;
    0 for when the pod was made."""

    cpu_ns: int = 0
    since: int = 0
    memory: int = 0
    working_set: int = 0
    rss: int = 0
    swap: int = 0
    limit: int | None = None
    page_faults: int = 0
    major_page_faults: int = 0


@dataclass(frozen=True)
class _Charged:
    """What the group is charged with."""

    usage: int = 0
    anonymous: int = 0
    inactive_file: int = 0
    limit: int | None = None
    page_faults: int = 0
    major_page_faults: int = 0


def read(
    path: str, pids: Iterable[int], *, root: Path = cgroup.ROOT, proc: Path = PROC
) -> HostUsage:
    """The use of the group `path` ("" where there are none) with these processes in it."""
    folders = cgroup.detect(root).folders(path) if path else {}
    processes = [each for each in pids if each]
    charged = _charged(folders)
    anonymous = swap = 0
    for pid in processes:
        # What a shim shares with the zygote that it was forked from is in it by its share alone.
        found = _fields(proc / str(pid) / "smaps_rollup") or _fields(proc / str(pid) / "status")
        anonymous += found.get("Pss_Anon:", found.get("RssAnon:", 0)) * 1024
        swap += found.get("SwapPss:", found.get("VmSwap:", 0)) * 1024
    usage = max(charged.usage, charged.usage - charged.anonymous + anonymous)
    cpu = _cpu(folders)
    since = 0
    if cpu is None:
        cpu, since = _process_times(processes, proc)
    return HostUsage(
        cpu_ns=cpu,
        since=since,
        memory=usage,
        working_set=max(0, usage - charged.inactive_file),
        rss=anonymous or charged.anonymous,
        swap=swap,
        limit=charged.limit,
        page_faults=charged.page_faults,
        major_page_faults=charged.major_page_faults,
    )


def _cpu(folders: dict[str, Path]) -> int | None:
    if (unified := folders.get("unified")) is not None:
        usec = _fields(unified / "cpu.stat").get("usage_usec")
        return None if usec is None else usec * 1000
    # In version 1 it is with the cpu controller where the two are mounted together, as is usual.
    return _number(folders["cpu"] / "cpuacct.usage") if "cpu" in folders else None


def _charged(folders: dict[str, Path]) -> _Charged:
    if (unified := folders.get("unified")) is not None:
        folder, names = unified, ("memory.current", "memory.max", "anon", "inactive_file", "")
    elif "memory" in folders:
        names = ("memory.usage_in_bytes", "memory.limit_in_bytes", "rss", "inactive_file", "total_")
        folder = folders["memory"]
    else:
        return _Charged()
    usage, limit, anonymous, inactive, prefix = names
    stat = _fields(folder / "memory.stat")
    most = _number(folder / limit)
    return _Charged(
        usage=_number(folder / usage) or 0,
        anonymous=stat.get(prefix + anonymous, 0),
        inactive_file=stat.get(prefix + inactive, 0),
        limit=most if most is not None and most < _NO_LIMIT else None,
        page_faults=stat.get(prefix + "pgfault", 0),
        major_page_faults=stat.get(prefix + "pgmajfault", 0),
    )


def _process_times(pids: list[int], proc: Path) -> tuple[int, int]:
    """Processor time that the processes took, all their threads, and when the first began."""
    total, first = 0, 0
    boot = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    for pid in pids:
        try:
            text = (proc / str(pid) / "stat").read_text()
        except OSError:
            continue
        # The name may hold anything; user and system time are the 14th and 15th field.
        fields = text.rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) * _TICK
        began = boot + int(fields[19]) * _TICK
        first = min(first, began) if first else began
    return total, first


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _fields(file: Path) -> dict[str, int]:
    """A file of names and numbers."""
    found = {}
    try:
        for line in file.read_text().splitlines():
            words = line.split()
            if len(words) >= 2 and words[1].isdigit():
                found[words[0]] = int(words[1])
    except OSError:
        pass
    return found
