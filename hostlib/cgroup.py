"""Control groups, version 1 or 2, by path: ``/kubepods/pod1/thaw-k3v9`` whatever the version.

Version 2 is used only where ``/sys/fs/cgroup`` itself is cgroup2: hybrid hosts mount a tree of
version 2 that has no controllers. A controller that is missing, or a limit that the kernel denies,
costs one line of log and not the pod. All calls are short and synchronous.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import posixpath
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostlib.errors import InvalidArgument, ResourceExhausted

log = logging.getLogger(__name__)

ROOT: Final = Path("/sys/fs/cgroup")
CONTROLLERS: Final = ("memory", "cpu", "pids")
CPU_PERIOD: Final = 100_000
"""Microseconds; the kernel's default."""

NO_LIMIT: Final = -1
"""As a limit: none, where there was one."""

_REMOVE_TRIES: Final = 20
_UNLIMITED: Final = 1 << 62
_warned: set[str] = set()


MOST_WEIGHT: Final = 10_000
"""Of `Limits.weight`, in version 2 (cpu.weight of the kernel's cgroup-v2.rst)."""


@dataclass(frozen=True)
class Limits:
    """None leaves a limit as it is. `memory` in bytes, `cpus` in processors, `pids` in tasks;
    `weight` is the share of processors that others want too, in version 2's scale (100 is usual).
    """

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    weight: int | None = None


@dataclass(frozen=True)
class Hierarchy:
    """Where the controllers' trees are mounted; with version 2 all are in one."""

    version: int
    mounts: Mapping[str, Path]

    def folders(self, path: str) -> dict[str, Path]:
        """The folder of the cgroup `path` in each tree."""
        relative = normalise(path).lstrip("/")
        return {name: mount / relative for name, mount in self.mounts.items()}


def normalise(path: str) -> str:
    """`path` as an absolute cgroup path. Raises `InvalidArgument` for one that leaves the tree."""
    if "\0" in path or ".." in path.split("/"):
        raise InvalidArgument(f"bad cgroup path {path!r}")
    return posixpath.normpath("/" + path.strip("/"))


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        log.warning("%s", message)


def detect(root: Path = ROOT) -> Hierarchy:
    """What this host has; the trees are looked for anew at each call."""
    if (root / "cgroup.controllers").is_file():
        return Hierarchy(2, {"unified": root})
    mounts = {name: root / name for name in CONTROLLERS if (root / name / "tasks").is_file()}
    for name in CONTROLLERS:
        if mounts and name not in mounts:
            _warn(f"this host has no {name} cgroup controller: its limits are not applied")
    # Freezer and the like carry no limits; a tree is needed all the same to find and kill members.
    return Hierarchy(1, mounts)


def create(path: str, hierarchy: Hierarchy | None = None) -> None:
    """Make the cgroup `path` and those above it; one that exists is taken as it is."""
    tree = hierarchy or detect()
    make(path, tree)
    hand_down(path, tree)


def make(path: str, tree: Hierarchy) -> None:
    """`create`, but in version 2 with the controllers alone that it happens to get."""
    for folder in tree.folders(path).values():
        folder.mkdir(parents=True, exist_ok=True)


def hand_down(path: str, tree: Hierarchy) -> None:
    """Hand the controllers down from the root to the parent of `path`; nothing in version 1."""
    if tree.version != 2:
        return
    current = tree.mounts["unified"]
    for part in normalise(path).strip("/").split("/"):
        try:
            have = (current / "cgroup.controllers").read_text().split()
        except OSError:
            have = []
        for name in CONTROLLERS:
            if name not in have:
                _warn(f"cgroup controller {name} is not available in {current}")
                continue
            try:
                (current / "cgroup.subtree_control").write_text(f"+{name}")
            except OSError as error:
                _warn(f"cgroup controller {name} cannot be enabled in {current}: {error.strerror}")
        current = current / part


def procs_files(path: str, hierarchy: Hierarchy | None = None) -> list[Path]:
    """The files that a process writes itself into to enter the cgroup."""
    tree = hierarchy or detect()
    return [folder / "cgroup.procs" for folder in tree.folders(path).values()]


def add(path: str, pid: int, hierarchy: Hierarchy | None = None) -> None:
    """Move process `pid` into the cgroup. Memory that it holds stays charged where it was.

    Raises `ResourceExhausted` when the kernel refuses, ProcessLookupError when it is gone.
    """
    for file in procs_files(path, hierarchy):
        try:
            file.write_text(str(pid))
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise ProcessLookupError(pid) from error
            raise ResourceExhausted(
                f"process {pid} cannot enter cgroup {path}: {error.strerror}"
            ) from error


def _number(version: int, value: int) -> str:
    return "max" if value < 0 and version == 2 else str(value)


def _limit_files(version: int, limits: Limits) -> Iterator[tuple[str, str, str]]:
    """Controller, file and value of each limit that is set."""
    if limits.memory is not None:
        yield (
            "memory",
            "memory.max" if version == 2 else "memory.limit_in_bytes",
            _number(version, limits.memory),
        )
    if limits.cpus is not None:
        quota = NO_LIMIT if limits.cpus < 0 else max(1000, int(limits.cpus * CPU_PERIOD))
        if version == 2:
            yield "cpu", "cpu.max", f"{_number(version, quota)} {CPU_PERIOD}"
        else:
            yield "cpu", "cpu.cfs_period_us", str(CPU_PERIOD)
            yield "cpu", "cpu.cfs_quota_us", str(quota)
    if limits.weight is not None:
        if version == 2:
            yield "cpu", "cpu.weight", str(limits.weight)
        else:
            yield "cpu", "cpu.shares", str(max(2, limits.weight * 1024 // 100))
    if limits.pids is not None:
        yield "pids", "pids.max", str(limits.pids)


def _held(folder: Path) -> int:
    try:
        return int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return 0


def limit(path: str, limits: Limits, hierarchy: Hierarchy | None = None) -> list[str]:
    """Set limits; the controllers whose limit could not be set are returned, and logged once."""
    tree = hierarchy or detect()
    folders = tree.folders(path)
    missed: list[str] = []
    for controller, file, value in _limit_files(tree.version, limits):
        folder = folders.get("unified" if tree.version == 2 else controller)
        try:
            if folder is None:
                raise FileNotFoundError(errno.ENOENT, "no such controller")
            if file == "memory.max" and value != "max" and _held(folder) >= int(value):
                # Version 1 refuses it; version 2 would kill.
                raise OSError(errno.EBUSY, "less than what is in use")
            (folder / file).write_text(value)
        except OSError as error:
            _warn(f"cgroup limit {file} cannot be set: {error.strerror}")
            if controller not in missed:
                missed.append(controller)
    return missed


@dataclass(frozen=True)
class Above:
    """What the groups above one are limited to: the least `memory` in bytes, None for no limit, and
    whether any has a limit of `cpu` time."""

    memory: int | None = None
    cpu: bool = False


def above(path: str, hierarchy: Hierarchy | None = None) -> Above:
    """The limits of the cgroups above `path`."""
    tree = hierarchy or detect()
    # The root's own limit is the machine, or the container that this node is in.
    parts = list(itertools.accumulate(normalise(path).strip("/").split("/"), posixpath.join))[:-1]
    two = tree.version == 2
    memory = _numbers(tree, parts, "memory", "memory.max" if two else "memory.limit_in_bytes")
    cpu = _numbers(tree, parts, "cpu", "cpu.max" if two else "cpu.cfs_quota_us")
    # Version 1 writes no limit as the largest number of pages, and as -1.
    return Above(
        min((each for each in memory if each < _UNLIMITED), default=None), max(cpu, default=0) > 0
    )


def _numbers(tree: Hierarchy, parts: Sequence[str], controller: str, name: str) -> list[int]:
    mount = tree.mounts.get("unified" if tree.version == 2 else controller)
    found: list[int] = []
    if mount is None:
        return found
    for part in parts:
        # Version 2 writes no limit as a word.
        with contextlib.suppress(OSError, ValueError, IndexError):
            found.append(int((mount / part / name).read_text().split()[0]))
    return found


def pids(path: str, hierarchy: Hierarchy | None = None) -> set[int]:
    """The processes in the cgroup, those in cgroups below it left out."""
    found: set[int] = set()
    for file in procs_files(path, hierarchy):
        with contextlib.suppress(OSError):
            found.update(int(line) for line in file.read_text().split())
    return found


def kill(path: str, hierarchy: Hierarchy | None = None) -> None:
    """SIGKILL every process in the cgroup, but never the caller."""
    for pid in pids(path, hierarchy) - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove(path: str, hierarchy: Hierarchy | None = None) -> bool:
    """Remove the cgroup; False when processes or cgroups are still in it. Idempotent.

    A killed process leaves its cgroup a little later: waits for that up to 0.2 s, blocking.
    """
    gone = True
    for folder in (hierarchy or detect()).folders(path).values():
        for attempt in range(_REMOVE_TRIES):
            try:
                folder.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:
                if attempt == _REMOVE_TRIES - 1:
                    gone = False
                else:
                    time.sleep(0.01)
    return gone
