"""One microVM as the daemon holds it, and what a shim and the zygote do for it.

`Shim` and `Zygote` are what the daemon needs of the shim protocol (docs/shim-protocol.md); the real
ones are in `cri.shims`, and tests have theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cri.pod_limits import Bounds
from cri.shapes import Size
from cri.sources import Sources
from hostlib.cgroup import Above
from shim.records import ContainerRecord, PodRecord, ShimConfig

Wire = dict[str, Any]


@dataclass(frozen=True)
class ExecResult:
    """How a command ended."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Shim(Protocol):
    """A connected shim. Every method raises `ThawError`; `Unavailable` when the shim is gone."""

    @property
    def closed(self) -> asyncio.Event:
        """Set when the connection is over: the shim is dead, or let go."""
        ...

    async def describe(self) -> Wire: ...
    async def ram(self) -> tuple[str, int]: ...
    async def bind(
        self, pod: PodRecord, network: Wire, identity: Wire, users: Wire | None = None
    ) -> Wire: ...
    async def pod_update(self, config: Wire) -> None: ...
    async def pod_limit(self, memory: int) -> None: ...
    async def pod_resize(self, wanted: Size, region_mib: int) -> Size: ...
    async def pod_stop(self) -> None: ...
    async def container_create(
        self,
        container: ContainerRecord,
        spec: Wire,
        layers: Sequence[Mapping[str, str]],
        volumes: Sequence[Mapping[str, str]],
        sources: Sources,
    ) -> Wire: ...
    async def container_start(self, container_id: str) -> int: ...
    async def container_stop(self, container_id: str, number: int, timeout: float) -> None: ...
    async def container_remove(self, container_id: str) -> None: ...
    async def container_update(
        self,
        container_id: str,
        resources: Wire,
        oom_score_adj: int | None,
        config: Wire,
        guest_cpus: str,
    ) -> None: ...
    async def container_reopen_log(self, container_id: str) -> None: ...
    async def pod_stats(self) -> Wire: ...
    async def exec_sync(self, container_id: str, process: Wire, timeout: float) -> ExecResult: ...
    async def exec_open(
        self,
        container_id: str,
        process: Wire,
        *,
        terminal: bool = False,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> str: ...
    async def exec_wait(self, name: str) -> int: ...
    async def exec_resize(self, name: str, width: int, height: int) -> None: ...
    async def attach_open(
        self,
        container_id: str,
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None: ...
    async def container_resize(self, container_id: str, width: int, height: int) -> None: ...
    async def forward_open(self, port: int, sock: int) -> None: ...
    async def shutdown(self) -> None: ...
    async def close(self) -> None: ...


class Zygote(Protocol):
    """Where shims and snapshots come from."""

    async def spawn(self, vm_id: str, folder: Path, config: ShimConfig, ram: int) -> Shim:
        """A shim whose VM waits, paused. Raises what the shim reports when it fails."""
        ...

    async def connect(self, vm_id: str, socket: Path, *, timeout: float) -> Shim:
        """A shim of a former daemon. Raises `Unavailable`, `DeadlineExceeded`."""
        ...

    async def bake(self, shape: str, progress: Callable[[str, float], None]) -> Wire:
        """Bake the shape, unless it is there; the event ``baked``."""
        ...

    async def load(self, path: Path) -> tuple[str, int]: ...
    async def verify(self, snapshot: Path, key: str, ram: int) -> bool: ...


@dataclass
class Vm:
    """A microVM: pooled, bound to a pod, or one whose shim is gone (`shim` is None)."""

    id: str
    folder: Path
    netns: Path
    shape: str
    key: str
    shim: Shim | None
    shim_pid: int = 0
    shim_start_time: int = 0
    qemu_pid: int = 0
    pinned: frozenset[int] = frozenset()
    """The node's processors that its threads are kept to; empty for all."""
    cgroup: str = ""
    """Of the pod that it is bound to."""
    above: Above = field(default_factory=Above)
    """The limits of the groups that it is in."""
    bounds: Bounds = field(default_factory=Bounds)
    entering: asyncio.Task[None] | None = None
    """The move into that cgroup, which must be over before the group is removed."""
    grown: Size | None = None
    """What it has become, None while it is as its shape says."""
    limit: Size | None = None
    """What it can become, None for its shape: one that an older shim restored."""
    stretched: bool = False
    """Whether it ever had more memory than its shape: it has the addresses for more since."""
    claims: list[Size] = field(default_factory=list)
    """What calls under way need of it."""

    @property
    def base(self) -> Size:
        """What it was restored as."""
        return Size.of(self.shape)

    @property
    def size(self) -> Size:
        """What it has."""
        return self.grown or self.base

    @property
    def most(self) -> Size:
        """What it can become, as far as its machine is concerned."""
        return self.limit or self.base

    @property
    def goal(self) -> Size:
        """What it has, or is about to."""
        found = self.size
        for each in self.claims:
            found = found.join(each)
        return found

    def became(self, size: Size) -> None:
        """Take over what it has now."""
        self.grown = size
        self.stretched |= size.memory_mib > self.base.memory_mib

    def described(self, wire: Wire) -> None:
        """Take over what its shim says of it."""
        self.shim_pid = int(wire.get("pid") or self.shim_pid)
        self.shim_start_time = int(wire.get("start_time") or self.shim_start_time)
        self.qemu_pid = int(wire.get("qemu_pid") or 0)
        self.became(Size.from_wire(wire.get("size"), self.base))
        self.stretched |= bool(wire.get("region_mib"))
        self.limit = Size.from_wire(wire.get("most"), self.base)
