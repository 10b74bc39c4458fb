"""CPU sets: what becomes of the node's processors that a container is given.

A guest has processors of its own. A container that is given n of the node's sees n of its VM's,
those that its pod's other containers use least, and the VM's threads run on the processors of all
the pod's containers, once each of them is given some (`pin`). Memory nodes cannot be chosen for a
VM whose memory is a snapshot's: a set that names them all is as good as none, others are refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hostlib.errors import InvalidArgument, Unimplemented

log = logging.getLogger(__name__)

_SYSTEM: Final = Path("/sys/devices/system")
_RANGE: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_MAX_TEXT: Final = 4096
_MAX_NUMBER: Final = 65535


def parse(text: str) -> frozenset[int]:
    """The numbers of a list as the kernel writes it, ``0-3,7``. Raises `InvalidArgument`."""
    found: set[int] = set()
    for part in text.strip().split(",") if len(text) <= _MAX_TEXT else [""]:
        match = _RANGE.fullmatch(part.strip())
        first = int(match.group(1)) if match else 1
        last = int(match.group(2) or first) if match else 0
        if not first <= last <= _MAX_NUMBER:
            raise InvalidArgument(
                f"{text[:80]!r} is no list of numbers", hint='for example "0-3,7"'
            )
        found.update(range(first, last + 1))
    return frozenset(found)


def text(numbers: Iterable[int]) -> str:
    """The opposite of `parse`."""
    return ",".join(str(each) for each in sorted(numbers))


def _known(file: str) -> frozenset[int]:
    try:
        return parse((_SYSTEM / file).read_text())
    except (OSError, InvalidArgument):
        return frozenset({0})


def online() -> frozenset[int]:
    """The node's processors."""
    return _known("cpu/online")


def check(cpus: str, mems: str) -> None:
    """Refuse sets that this node, or a VM, cannot give. Raises `InvalidArgument`,
    `Unimplemented`."""
    if cpus and (missing := parse(cpus) - online()):
        raise InvalidArgument(
            f"cpuset_cpus names {text(missing)[:80]}, which this node has not online",
            hint=f"it has {text(online())[:200]}",
        )
    if not mems:
        return
    nodes, wanted = _known("node/has_memory"), parse(mems)
    if missing := wanted - nodes:
        raise InvalidArgument(
            f"cpuset_mems names {text(missing)[:80]}, where this node has no memory",
            hint=f"it has {text(nodes)[:200]}",
        )
    if wanted != nodes:
        raise Unimplemented(
            "a microVM's memory cannot be kept to some of the node's memory nodes",
            hint=f"name all of them ({text(nodes)[:200]}), or none",
        )


def guest_cpus(cpus: str, vcpus: int, others: Iterable[str]) -> str:
    """Which of its VM's processors a container gets that is given `cpus` of the node's; "" for any.
    `others` are what the pod's other containers have."""
    count = len(parse(cpus)) if cpus else vcpus
    if count >= vcpus:
        return text(range(vcpus)) if cpus else ""
    used = Counter(number for each in others if each for number in parse(each))
    return text(sorted(range(vcpus), key=lambda number: (used[number], number))[:count])


def union(sets: Iterable[str]) -> frozenset[int]:
    """The node's processors that a pod may use; empty for all, where a container names none."""
    found: frozenset[int] = frozenset()
    for each in sets:
        if not each:
            return frozenset()
        found |= parse(each)
    return found


def own() -> frozenset[int]:
    """The processors of this process, and so of the VMs that are kept to none of them."""
    return frozenset(os.sched_getaffinity(0))


def pinned(pid: int) -> frozenset[int]:
    """What `pin` made of a process; empty for nothing."""
    try:
        found = frozenset(os.sched_getaffinity(pid))
    except OSError:
        return frozenset()
    return frozenset() if found == own() else found


def pin(pid: int, cpus: frozenset[int]) -> None:
    """Keep every thread of the process, and those to come, to `cpus`; to none where it is empty.

    Blocking. What cannot be is logged.
    """
    wanted = cpus or own()
    # A thread that is born meanwhile has its parent's set: the second look finds it.
    for _ in range(2):
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            return
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                try:
                    os.sched_setaffinity(int(thread), wanted)
                except OSError as error:
                    if isinstance(error, ProcessLookupError):
                        raise
                    log.warning("process %d stays on its processors: %s", pid, error.strerror)
                    return
