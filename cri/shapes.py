"""Which machine shape a pod gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cri.api import v1_pb2 as v1
from cri.config import shape_size
from hostlib.errors import ResourceExhausted

GUEST_MIB: Final = 96
"""What the guest's kernel, agent and page tables take of the VM's memory."""


def wanted(config: v1.PodSandboxConfig) -> tuple[float, int]:
    """The CPUs and MiB that a pod asks for: the sum of its containers and its overhead."""
    cpus, size = 0.0, 0
    for resources in (config.linux.resources, config.linux.overhead):
        if resources.cpu_period > 0 and resources.cpu_quota > 0:
            cpus += resources.cpu_quota / resources.cpu_period
        size += max(0, resources.memory_limit_in_bytes)
    return cpus, -(-size // 2**20)


def pick(cpus: float, mib: int, shapes: Sequence[str], default: str) -> str:
    """The default shape where it holds the pod (memory costs nothing before it is touched, and the
    pool has one ready), else the first larger one. Raises `ResourceExhausted`."""
    needed = mib + GUEST_MIB if mib else 0
    for shape in (default, *shapes):
        vcpus, memory = shape_size(shape)
        if vcpus >= cpus and memory >= needed:
            return shape
    raise ResourceExhausted(
        f"no shape holds {cpus:g} CPUs and {mib} MiB",
        hint="add a larger one to guest.shapes, or lower the pod's limits",
    )
