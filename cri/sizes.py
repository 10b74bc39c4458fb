"""How large a pod's VM must be, and may become: decided here, done by `cri.growth`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from cri import pod_limits, shapes
from cri.api import v1_pb2 as v1
from cri.shapes import Size
from cri.vms import Vm
from hostlib.errors import ResourceExhausted

if TYPE_CHECKING:
    from cri.config import Config
    from cri.daemon import Daemon

BLOCK_MIB: Final = 128
"""What a guest's kernel takes in at a time."""

Resources = v1.LinuxContainerResources


def needed(config: v1.PodSandboxConfig, containers: Iterable[Resources]) -> tuple[float, int]:
    """The CPUs and the MiB for containers that a pod's VM must have: what the pod asks for, each
    container's own limit, and their sum where the pod as a whole is limited too."""
    found = list(containers)
    cpus, mib = shapes.wanted(config)
    memory = max([0, *(pod_limits.memory([one]) for one in found)])
    memory = max(memory, pod_limits.pod_memory(config, found))
    cpus = max([cpus, *map(shapes.quota, found)])
    if shapes.quota(config.linux.resources) and all(map(shapes.quota, found)):
        cpus = max(cpus, sum(map(shapes.quota, found)))
    return cpus, max(mib, -(-memory // 2**20))


def ceiling(base: Size, most: Size, node: Size, config: Config) -> Size:
    """What a VM that began as `base` may become here: what its machine can, its node has, and the
    configuration allows."""
    vcpus = min(config.vm.max_cpus or node.vcpus, most.vcpus)
    memory = min(config.vm.max_memory_mib or node.memory_mib, most.memory_mib)
    blocks = (memory - base.memory_mib) // BLOCK_MIB
    return base.join(Size(vcpus, base.memory_mib + blocks * BLOCK_MIB))


def plan(base: Size, top: Size, cpus: float, mib: int) -> Size:
    """The least VM between `base` and `top` with so many CPUs, and MiB for containers.

    Raises `ResourceExhausted` where there is none.
    """
    if cpus > top.vcpus:
        raise ResourceExhausted(
            f"{cpus:g} CPUs are more than the pod's VM can have ({top.vcpus})", hint=_hint(base)
        )
    if mib > top.room:
        raise ResourceExhausted(
            f"{mib} MiB are more than the pod's VM can have for containers ({top.room})",
            hint=_hint(base),
        )
    memory = base.memory_mib
    if mib > base.room:
        # What the guest itself takes grows with it, by less than a block each time.
        memory += -(-(mib - base.room) // BLOCK_MIB) * BLOCK_MIB
        while Size(1, memory).room < mib:
            memory += BLOCK_MIB
    return base.join(Size(math.ceil(cpus), min(memory, top.memory_mib)))


def _hint(base: Size) -> str:
    return (
        "what a VM grows to is bounded by the node, vm.max_memory_mib, vm.max_cpus and the shape"
        f" that it began as ({base}, whose vCPUs it keeps without KVM): ask for less, or start the"
        " pod anew where a larger one of guest.shapes holds it"
    )


def top(daemon: Daemon, vm: Vm) -> Size:
    """What the VM may become."""
    return ceiling(vm.base, vm.most, daemon.node, daemon.config).join(vm.size)


def region_mib(daemon: Daemon, vm: Vm) -> int:
    """What the VM may ever have beyond its shape."""
    return top(daemon, vm).memory_mib - vm.base.memory_mib
