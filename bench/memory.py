"""Memory of processes, the code that TCG translated apart."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAPPING: Final = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ \S+ (\d+)")
_KIB_IN_MIB: Final = 1024


@dataclass(frozen=True)
class Memory:
    """In MiB: what belongs to the process alone, of that translated code, and its proportional
    share of everything it maps."""

    private: float = 0.0
    code: float = 0.0
    share: float = 0.0

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            self.private + other.private, self.code + other.code, self.share + other.share
        )


def parse(smaps: Iterable[str]) -> Memory:
    """The lines of ``/proc/PID/smaps``, added up.

    QEMU's translation buffer is its only anonymous mapping that is writable and executable.
    """
    private = code = share = 0
    is_code = False
    for line in smaps:
        if (mapping := _MAPPING.match(line)) is not None:
            is_code = mapping[1].startswith("rwx") and mapping[2] == "0"
        elif line.startswith(("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:")):
            size = int(line.split()[1])
            private += size
            code += size if is_code else 0
        elif line.startswith("Pss:"):
            share += int(line.split()[1])
    return Memory(private / _KIB_IN_MIB, code / _KIB_IN_MIB, share / _KIB_IN_MIB)


def of(*pids: int) -> Memory:
    """The sum over the processes that still live."""
    total = Memory()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += parse(Path(f"/proc/{pid}/smaps").read_text().splitlines())
    return total


def resident_mib(pid: int) -> float:
    """VmRSS of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / _KIB_IN_MIB
    raise ProcessLookupError(pid)


def available_mib() -> float:
    """What the kernel thinks can still be used without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / _KIB_IN_MIB
    raise ValueError("/proc/meminfo has no MemAvailable")
