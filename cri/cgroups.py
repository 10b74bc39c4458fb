"""The control groups of this daemon's VMs: where each is, what it is limited to, when it goes.

A pod's VM (QEMU and shim) is in ``<cgroup_parent>/thaw-<vm id>``, or in
``/thaw-<instance>/thaw-<vm id>`` where the request names no parent; VMs that wait are in
``/thaw-<instance>/pool``, whose share of the processors is small: what makes a VM ready gives way
to pods. The daemon makes a pod's group, moves the VM into it beside the restore, and removes it.
Memory that a VM took before it was bound stays charged to the pool's group. All methods block.

In version 2 QEMU and shim are in a group of their own below the pod's, `_INNER`, which the pod's
hands its controllers to: the kernel then takes them from no group above. systemd would take them
from a slice that it has no unit in that needs them, each time it looks at the slice, and with them
the limits of the groups that others made in it (cgroup_subtree_control_write in
linux/kernel/cgroup/cgroup.c, cg_enable_everywhere in systemd/src/shared/cgroup-setup.c).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Final

from hostlib import cgroup, ids
from hostlib.cgroup import MOST_WEIGHT, Above, Hierarchy, Limits
from hostlib.errors import InvalidArgument, ThawError

log = logging.getLogger(__name__)

MIB: Final = 2**20

WORKER_MIB: Final = 256
"""Memory that a pod's group gets beyond what its pod asks for: guest kernel, agent, page tables,
QEMU and shim."""

TCG_MIB: Final = 32
TCG_VCPU_MIB: Final = 32
"""What the group of an emulated VM gets besides, and for each vCPU: the buffer of QEMU's translated
code, which is filled in time (`vmm.qemu.argv`)."""

GROWTH_PART: Final = 48
"""A VM takes one in so many MiB of what it has grown by: the guest notes 64 bytes of each page, in
pages of its own that it writes all at once, and the host keeps tables of them."""

REGION_PART: Final = 8192
"""And one in so many of what it could grow by: QEMU notes three bits of each page."""

WORKER_CPUS: Final = 0.5
"""Processors that a pod's group gets beyond what its pod asks for: shim, QEMU's own threads, the
guest's kernel. The containers' own quota is kept by the guest."""

POOL_WEIGHT: Final = 10
"""The pool's share of processors that others want too; a pod's group has `POD_WEIGHT`."""

POD_WEIGHT: Final = 100

_REMOVE_SECONDS: Final = 5.0
"""How long the removal of a group waits for it to be empty."""

_PREFIX: Final = "thaw-"
_INNER: Final = "vm"


def worker_mib(vcpus: int, *, emulated: bool) -> int:
    """The memory that a VM takes beyond its containers'."""
    return WORKER_MIB + (TCG_MIB + TCG_VCPU_MIB * vcpus if emulated else 0)


def growth_mib(grown: int, region: int) -> int:
    """The memory that a VM takes besides, once it has `grown` by so many MiB of the `region` that
    it can grow by; 0 for one that has not grown."""
    return 1 + grown // GROWTH_PART + region // REGION_PART if grown > 0 else 0


def limits(cpus: float, mib: int, *, worker_mib: int) -> Limits:
    """The limits of a pod that is limited to `cpus` and `mib`; 0 is no limit."""
    return Limits(
        memory=(mib + worker_mib) * MIB if mib else None,
        cpus=cpus + WORKER_CPUS if cpus else None,
    )


def parent_path(parent: str) -> str:
    """The path that a request's `cgroup_parent` names, in either of the kubelet's two forms:
    a path, or a systemd slice (``a-b.slice`` is ``/a.slice/a-b.slice``, systemd.slice(5)).

    Raises `InvalidArgument` for one that leaves the tree.
    """
    if not parent.endswith(".slice") or "/" in parent:
        return cgroup.normalise(parent)
    parts = parent.removesuffix(".slice").split("-")
    if not all(parts):
        raise InvalidArgument(
            f"cgroup parent {parent!r} is no slice", hint="see systemd.slice(5) for the form"
        )
    slices = ("-".join(parts[: count + 1]) for count in range(len(parts)))
    return cgroup.normalise("/".join(f"{each}.slice" for each in slices))


class Cgroups:
    """Off until `open` finds that groups can be made; then off means that paths are empty."""

    def __init__(self, instance: str, root: Path = cgroup.ROOT) -> None:
        self._own = f"/{_PREFIX}{instance}"
        self._root = root
        self._on = False
        self._stay: set[str] = set()
        """Groups of dead VMs that could not be removed yet."""
        self._lock = threading.Lock()
        self._leaving = 0
        """VMs that are pods' and still in the pool's group."""

    def open(self) -> None:
        """Make the pool's group. Where that fails, VMs stay in the daemon's own: one warning."""
        tree = cgroup.detect(self._root)
        try:
            if not tree.mounts:
                raise FileNotFoundError("no controller is mounted")
            cgroup.create(f"{self._own}/pool", tree)
            cgroup.limit(f"{self._own}/pool", Limits(weight=POOL_WEIGHT), tree)
        except (OSError, ThawError) as error:
            log.warning("pods get no cgroups of their own, hence no limits on the host: %s", error)
            for path in (f"{self._own}/pool", self._own):
                with contextlib.suppress(OSError):
                    cgroup.remove(path, tree)
        else:
            self._on = True

    @property
    def pool(self) -> str:
        """Where a VM waits; "" where groups are off."""
        return f"{self._own}/pool" if self._on else ""

    def path(self, vm_id: str, parent: str) -> str:
        """Where the VM of a pod belongs; "" where groups are off. Raises `InvalidArgument`."""
        above = parent_path(parent) if parent else self._own
        return f"{above.rstrip('/')}/{_PREFIX}{vm_id}" if self._on else ""

    def enter(self, path: str, pids: Iterable[int], found: Limits) -> None:
        """Make the group, limit it and move the processes in; what cannot be is logged.

        Idempotent. The kernel waits out a grace period as it moves the first process.
        """
        if not path:
            return
        tree = cgroup.detect(self._root)
        try:
            with self._hurried(tree):
                cgroup.create(path, tree)
                cgroup.limit(path, found, tree)
                inner = _inner(path, tree)
                if inner != path:
                    cgroup.make(inner, tree)
                for pid in pids:
                    cgroup.add(inner, pid, tree)
                if inner != path:
                    # Not before: a group with processes in it hands no controllers down.
                    cgroup.hand_down(inner, tree)
        except ProcessLookupError:
            # The VM has ended; its pod will be told.
            pass
        except (OSError, ThawError) as error:
            log.warning("a pod stays outside its cgroup %s: %s", path, error)

    @contextlib.contextmanager
    def _hurried(self, tree: Hierarchy) -> Iterator[None]:
        """Meanwhile the pool's group has a pod's share besides its own.

        Before the kernel moves a process it waits for all that fork or end, of which some are in
        the pool's group, and for a grace period. On a busy host these would get next to no time for
        it, and neither would the VM that is moved, whose pod starts.
        """
        self._leave(1, tree)
        try:
            yield
        finally:
            self._leave(-1, tree)

    def _leave(self, more: int, tree: Hierarchy) -> None:
        with self._lock:
            self._leaving += more
            weight = min(POOL_WEIGHT + POD_WEIGHT * self._leaving, MOST_WEIGHT)
            cgroup.limit(f"{self._own}/pool", Limits(weight=weight), tree)

    def limit(self, path: str, found: Limits) -> None:
        """Change the limits of a pod's group; what cannot be is logged."""
        if path:
            cgroup.limit(path, found, cgroup.detect(self._root))

    def above(self, path: str) -> Above:
        """The limits of the groups that a pod's group is in."""
        return cgroup.above(path, cgroup.detect(self._root)) if path else Above()

    def made_for(self, vm_id: str, pids: Iterable[int]) -> str:
        """The group of a pod that the VM, these processes, is in, or that was made for it; "" for
        none."""
        name = f"{_PREFIX}{vm_id}"
        for pid in pids:
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                    path = line.split(":", 2)[2].removesuffix(f"/{_INNER}")
                    if path.rpartition("/")[2] == name:
                        return path
        made = any((folder / name).is_dir() for folder in self._folders())
        return self.path(vm_id, "") if made else ""

    def remove(self, vm_id: str, path: str = "") -> None:
        """Remove the group of a dead VM: `path`, or where it is by default. What is still in it
        is killed, and waited for, blocking, since a busy host takes a while to free its memory.
        What stays all the same is tried again with the next. Idempotent; never fails."""
        if not self._on:
            return
        tree = cgroup.detect(self._root)
        for each in list(self._stay):
            self._remove(each, tree, 0)
        for each in {path or self.path(vm_id, ""), self.path(vm_id, "")}:
            for place in dict.fromkeys((_inner(each, tree), each)):
                self._remove(place, tree, _REMOVE_SECONDS)

    def _remove(self, path: str, tree: Hierarchy, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        try:
            cgroup.kill(path, tree)
            while not cgroup.remove(path, tree):
                if time.monotonic() >= deadline:
                    log.warning("cgroup %s is not empty and stays", path)
                    self._stay.add(path)
                    return
                cgroup.kill(path, tree)
            self._stay.discard(path)
        except (OSError, ThawError) as error:
            log.warning("cgroup %s is not removed: %s", path, error)

    def sweep(self, known: Container[str]) -> int:
        """Remove the groups of this instance whose VM is not among `known`; how many."""
        found = {
            name.removeprefix(_PREFIX)
            for folder in self._folders()
            for name in _children(folder)
            if name.startswith(_PREFIX)
        }
        strangers = [vm for vm in found if ids.is_vm_id(vm) and vm not in known]
        for vm_id in strangers:
            self.remove(vm_id)
        return len(strangers)

    def close(self) -> None:
        """Remove the pool's group, and the instance's own unless pods are in it."""
        if not self._on:
            return
        tree = cgroup.detect(self._root)
        deadline = time.monotonic() + _REMOVE_SECONDS
        # Its VMs were killed just now: a busy host takes a while to free their memory.
        while not cgroup.remove(f"{self._own}/pool", tree) and time.monotonic() < deadline:
            pass
        if not any(_children(folder) for folder in self._folders()):
            cgroup.remove(self._own, tree)

    def _folders(self) -> list[Path]:
        if not self._on:
            return []
        return list(cgroup.detect(self._root).folders(self._own).values())


def _inner(path: str, tree: Hierarchy) -> str:
    """The group below `path` that the processes are in; `path` itself in version 1."""
    return f"{path}/{_INNER}" if tree.version == 2 else path


def _children(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []
