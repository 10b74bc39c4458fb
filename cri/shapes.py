"""Which machine shape a pod gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cri.api import v1_pb2 as v1
from cri.config import shape_size
from hostlib.errors import ResourceExhausted

_GUEST_MIB: Final = 88
_RESERVE_MIB: Final = 64
_PAGES_OF_PAGES: Final = 64


def guest_mib(memory: int) -> int:
    """What the guest's kernel and agent take of a VM's memory, in MiB: themselves, what the kernel
    notes of each page, and what it keeps free."""
    return _GUEST_MIB + memory // _PAGES_OF_PAGES + min(_RESERVE_MIB, memory // 32)


@dataclass(frozen=True)
class Size:
    """What a VM has, or can have: vCPUs, and memory in MiB."""

    vcpus: int
    memory_mib: int

    @classmethod
    def of(cls, shape: str) -> Size:
        return cls(*shape_size(shape))

    @classmethod
    def from_wire(cls, wire: Any, default: Size) -> Size:
        """What a shim says of its VM; `default` where it says nothing, as older ones do."""
        if not isinstance(wire, Mapping) or not wire:
            return default
        return cls(int(wire["vcpus"]), int(wire["memory_mib"]))

    @property
    def room(self) -> int:
        """The MiB that are left for containers."""
        return self.memory_mib - guest_mib(self.memory_mib)

    def join(self, other: Size) -> Size:
        """The least that holds both."""
        return Size(max(self.vcpus, other.vcpus), max(self.memory_mib, other.memory_mib))

    def within(self, other: Size) -> bool:
        return self.join(other) == other

    def __str__(self) -> str:
        return f"{self.vcpus}x{self.memory_mib}"


SHARES: Final = 1024
"""The CPU shares that stand for one processor: what a container asks for at least."""

_PERIOD: Final = 100_000


def quota(resources: v1.LinuxContainerResources) -> float:
    """The CPUs to which it is limited; 0 for no limit."""
    return max(0, resources.cpu_quota) / (resources.cpu_period or _PERIOD)


def wanted(config: v1.PodSandboxConfig) -> tuple[float, int]:
    """The CPUs and MiB that a pod's VM must have: the sum of its containers, their limit or, where
    it is more, what they ask for at least; and the memory of its overhead, whose CPUs are the
    host's own work."""
    asked, overhead = config.linux.resources, config.linux.overhead
    size = sum(max(0, each.memory_limit_in_bytes) for each in (asked, overhead))
    return max(quota(asked), asked.cpu_shares / SHARES), -(-size // 2**20)


def pick(cpus: float, mib: int, shapes: Sequence[str], default: str) -> str:
    """The default shape where it holds the pod (memory costs nothing before it is touched, and the
    pool has one ready), else the first larger one. Raises `ResourceExhausted`."""
    for shape in (default, *shapes):
        vcpus, memory = shape_size(shape)
        if vcpus >= cpus and memory - guest_mib(memory) >= mib:
            return shape
    raise ResourceExhausted(
        f"no shape holds {cpus:g} CPUs and {mib} MiB",
        hint="add a larger one to guest.shapes, or lower the pod's limits",
    )
