"""What the guest says that its pod uses, checked: the guest is hostile, and others reckon with it.

Of the agent's answer to ``pod.stats`` only what is known, of a known container, within its bounds
is passed on. A counter never falls: where the guest says less than before, it stays. Processor time
is bounded by what the VM's processors can have spent.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hostlib.errors import DeadlineExceeded

Wire = dict[str, Any]

PATIENCE: Final = 2.0
"""Seconds for the guest to answer. One that does not is asked no second time meanwhile."""

MAX: Final = 2**63 - 1
MAX_USEC: Final = MAX // 1000
"""Of which the nanoseconds are in range too."""
MAX_INTERFACES: Final = 64
MAX_TASKS: Final = 4_194_304
"""The kernel's own limit of process ids."""
MAX_OPEN_FILES: Final = 2**30
"""More than the kernel lets a process have, and than an agent counts."""
MAX_DISKS: Final = 16

_CPU_TIMES: Final = ("usage_usec", "user_usec", "system_usec")
_CPU_COUNTERS: Final = ("nr_periods", "nr_throttled", "throttled_usec", "nr_bursts", "burst_usec")
_MEMORY_GAUGES: Final = (
    "current", "peak", "swap", "min",
    "anon", "file", "kernel", "file_mapped", "inactive_file", "active_file",
)  # fmt: skip
_MEMORY_LIMITS: Final = ("limit", "swap_limit")
_MEMORY_COUNTERS: Final = ("pgfault", "pgmajfault", "max", "oom_kill")
_IO: Final = ("rbytes", "wbytes", "rios", "wios")
_RESOURCES: Final = ("cpu", "memory", "io")
_KINDS: Final = ("some", "full")
_AVERAGES: Final = ("avg10", "avg60", "avg300")
_DISK: Final = re.compile(r"[0-9]{1,3}:[0-9]{1,7}")
_DISK_COUNTS: Final = 11
_UNDER_WAY: Final = 8
"""Which of a disk's numbers is no counter."""
_INTERFACE: Final = re.compile(r"[!-.0-~]{1,15}")


@dataclass(frozen=True)
class Bounds:
    """What the VM can have at most."""

    vcpus: int
    memory_bytes: int
    disk_bytes: int


class GuestStats:
    """The last word on each counter of one pod."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._last: dict[tuple[str, ...], int] = {}

    def widen(self, bounds: Bounds) -> None:
        """The VM's size has changed. What it had once it may have used since."""
        before = self._bounds
        self._bounds = Bounds(
            max(before.vcpus, bounds.vcpus),
            max(before.memory_bytes, bounds.memory_bytes),
            bounds.disk_bytes,
        )

    def take(self, answer: Wire, containers: Collection[str], elapsed_ns: int) -> Wire:
        """The agent's answer, checked. `containers` are those that there are, `elapsed_ns` is the
        pod's age."""
        reading = _Reading(self._bounds, self._last, elapsed_ns)
        said = _object(answer, "containers")
        found: Wire = {
            "pod": reading.group(_object(answer, "pod"), "pod"),
            "containers": {
                each: reading.container(_object(said, each), each)
                for each in containers
                if each in said
            },
            "interfaces": reading.interfaces(answer.get("interfaces")),
            "scratch": reading.disk(answer.get("scratch")),
        }
        # What was not spoken of is forgotten, unless it is a container's, or the pod's.
        self._last = reading.counters | {
            key: value
            for key, value in self._last.items()
            if key not in reading.counters and (key[0] == "pod" or key[0] in containers)
        }
        return found


class Asker:
    """Asks the guest, once at a time: who comes while it is asked waits for the same answer, so
    that a guest that answers nothing has one request under way and not all that there may be."""

    def __init__(self, ask: Callable[[], Awaitable[Wire]], patience: float = PATIENCE) -> None:
        self._ask = ask
        self._patience = patience
        self._asked: asyncio.Task[Wire] | None = None

    async def answer(self) -> Wire:
        """The guest's answer, to be checked. Raises `DeadlineExceeded`, and what `ask` raises."""
        if self._asked is None:
            self._asked = asyncio.create_task(self._run(), name="stats")
        try:
            async with asyncio.timeout(self._patience):
                return await asyncio.shield(self._asked)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the guest did not say within {self._patience:g} s what it uses"
            ) from error

    async def _run(self) -> Wire:
        try:
            return await self._ask()
        finally:
            self._asked = None

    async def close(self) -> None:
        """Ask no more. Idempotent."""
        if (task := self._asked) is not None:
            task.cancel()
            await asyncio.wait([task])


class _Reading:
    def __init__(
        self, bounds: Bounds, last: Mapping[tuple[str, ...], int], elapsed_ns: int
    ) -> None:
        self._bounds = bounds
        self._last = last
        self._most_usec = min(max(0, elapsed_ns) // 1000 * bounds.vcpus, MAX_USEC)
        self.counters: dict[tuple[str, ...], int] = {}

    def _counter(self, value: object, *key: str, most: int = MAX) -> int:
        found = max(self._last.get(key, 0), min(_number(value) or 0, most))
        self.counters[key] = found
        return found

    def container(self, said: Wire, name: str) -> Wire:
        upper = said.get("upper")
        found = self.group(said, name)
        files = said.get("open_files")
        found["open_files"] = None
        if isinstance(files, dict):
            found["open_files"] = {
                each: min(_number(files.get(each)) or 0, MAX_OPEN_FILES)
                for each in ("all", "sockets")
            }
        found["open_files_limit"] = _number(said.get("open_files_limit"))
        found["upper"] = None
        if isinstance(upper, dict):
            found["upper"] = {
                "bytes": min(_number(upper.get("bytes")) or 0, self._bounds.disk_bytes),
                "inodes": min(_number(upper.get("inodes")) or 0, self._bounds.disk_bytes // 256),
            }
        return found

    def group(self, said: Wire, name: str) -> Wire:
        cpu, memory, io = (_object(said, each) for each in _RESOURCES)
        times = {
            each: self._counter(cpu[each], name, "cpu", each, most=self._most_usec)
            for each in _CPU_TIMES
            if each in cpu
        }
        counts = {
            each: self._counter(cpu[each], name, "cpu", each)
            for each in _CPU_COUNTERS
            if each in cpu
        }
        gauges = {
            each: min(_number(memory[each]) or 0, self._bounds.memory_bytes)
            for each in _MEMORY_GAUGES
            if each in memory
        }
        # Without one, or with one that no guest could reach, there is no limit.
        limits = {
            each: value
            for each in _MEMORY_LIMITS
            if (value := _number(memory.get(each))) is not None and value < MAX // 2
        }
        faults = {
            each: self._counter(memory[each], name, "memory", each)
            for each in _MEMORY_COUNTERS
            if each in memory
        }
        return {
            "cpu": times | counts,
            "memory": gauges | limits | faults,
            "io": {each: self._counter(io[each], name, "io", each) for each in _IO if each in io},
            "disks": self._disks(_object(said, "disks"), name),
            "huge": self._huge(_object(said, "huge"), name),
            "tasks": min(_number(said.get("tasks")) or 0, MAX_TASKS),
            "tasks_limit": _number(said.get("tasks_limit")),
            "processes": min(_number(said.get("processes")) or 0, MAX_TASKS),
            "pressure": self._pressure(_object(said, "pressure"), name),
        }

    def _disks(self, said: Wire, name: str) -> dict[str, list[int]]:
        # The first word is no container's: numbers of disks that are not spoken of are not kept.
        return {
            disk: self._numbers(ways, 2, "disk", name, disk)
            for disk, ways in itertools.islice(said.items(), MAX_DISKS)
            if _DISK.fullmatch(disk)
        }

    def _huge(self, said: Wire, name: str) -> Wire:
        if "current" not in said:
            return {}
        return {
            "current": min(_number(said["current"]) or 0, self._bounds.memory_bytes),
            "max": self._counter(said.get("max"), name, "huge", "max"),
        }

    def _pressure(self, said: Wire, name: str) -> Wire:
        return {
            resource: {
                kind: {
                    "total": self._counter(
                        _object(_object(said, resource), kind).get("total"),
                        name, "pressure", resource, kind, most=MAX_USEC,
                    ),
                    **{
                        each: _percent(_object(_object(said, resource), kind).get(each))
                        for each in _AVERAGES
                    },
                }
                for kind in _KINDS
                if kind in _object(said, resource)
            }
            for resource in _RESOURCES
            if resource in said
        }  # fmt: skip

    def interfaces(self, said: object) -> list[Wire]:
        found: dict[str, Wire] = {}
        for each in said[:MAX_INTERFACES] if isinstance(said, list) else ():
            name = each.get("name") if isinstance(each, dict) else None
            if not isinstance(name, str) or name in found or not _INTERFACE.fullmatch(name):
                continue
            found[name] = {
                "name": name,
                **{
                    way: self._numbers(each.get(way), 4, "interface", name, way)
                    for way in ("received", "sent")
                },
            }
        return list(found.values())

    def _numbers(self, said: object, count: int, *key: str) -> list[int]:
        numbers = said if isinstance(said, list) and len(said) == count else [0] * count
        return [self._counter(value, *key, str(at)) for at, value in enumerate(numbers)]

    def disk(self, said: object) -> Wire | None:
        if not isinstance(said, dict):
            return None
        size, inodes = self._bounds.disk_bytes, self._bounds.disk_bytes // 256
        return {
            "bytes": min(_number(said.get("bytes")) or 0, size),
            "bytes_free": min(_number(said.get("bytes_free")) or 0, size),
            "inodes": min(_number(said.get("inodes")) or 0, inodes),
            "inodes_free": min(_number(said.get("inodes_free")) or 0, inodes),
            "io": self._disk_io(said.get("io")),
        }

    def _disk_io(self, said: object) -> list[int] | None:
        if not isinstance(said, list) or len(said) != _DISK_COUNTS:
            return None
        found = self._numbers(said, _DISK_COUNTS, "scratch")
        found[_UNDER_WAY] = min(_number(said[_UNDER_WAY]) or 0, MAX_TASKS)
        return found


def _object(said: object, name: str) -> Wire:
    value = said.get(name) if isinstance(said, dict) else None
    return value if isinstance(value, dict) else {}


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return min(value, MAX)


def _percent(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        return 0.0
    return float(value)
