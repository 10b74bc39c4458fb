"""What bounds a pod beside its containers' own limits: its group on the host, and its whole guest.

The kernel kills a VM that outgrows its group, or one above it, and with it all of the pod. So the
guest keeps its containers together within what these leave it, and ends the one that wants more.
A group is limited as the kubelet limits a pod's: only while every container has a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cri import cgroups, shapes
from cri.api import v1_pb2 as v1
from hostlib.cgroup import Above, Limits
from hostlib.errors import FailedPrecondition

LEAST_MIB: Final = 32
"""What a guest's containers get together where the group leaves them less."""


@dataclass(frozen=True)
class Bounds:
    """`guest` is what the containers may have together, in bytes; 0 is all that the VM has."""

    group: Limits = field(default_factory=Limits)
    guest: int = 0


def of(
    config: v1.PodSandboxConfig,
    containers: Sequence[v1.LinuxContainerResources],
    *,
    above: Above,
    worker_mib: int,
    grown_mib: int = 0,
) -> Bounds:
    """The bounds of a pod with these containers; `above` are the limits of the groups that its
    own is in, `grown_mib` the whole memory of a VM that has grown, or once had, else 0."""
    memory = pod_memory(config, containers)
    # Version 1 lets no group have less than one in it.
    cpus = 0.0 if above.cpu else _sum(config, containers, shapes.quota)
    # A guest that means harm can use all that its VM could grow by: a VM that has grown is bounded
    # by what it has, as others are by their shape.
    mib = -(-memory // cgroups.MIB) or grown_mib
    group = cgroups.limits(cpus, mib, worker_mib=worker_mib)
    own = group.memory if memory else None
    walls = [each for each in (own, above.memory) if each is not None]
    guest = 0
    if walls:
        guest = max(min(walls) - worker_mib * cgroups.MIB, LEAST_MIB * cgroups.MIB)
    return Bounds(group, guest)


def pod_memory(
    config: v1.PodSandboxConfig, containers: Sequence[v1.LinuxContainerResources]
) -> int:
    """The bytes to which the pod as a whole is limited, its overhead among them; 0 for no limit."""
    return int(_sum(config, containers, _memory))


def _sum(
    config: v1.PodSandboxConfig,
    containers: Iterable[v1.LinuxContainerResources],
    of_one: Callable[[v1.LinuxContainerResources], float],
) -> float:
    """The pod's limit of one kind, its overhead among it; 0 where it has none."""
    each = [of_one(one) for one in containers]
    asked = of_one(config.linux.resources)
    if not asked or not all(each):
        return 0
    return max(asked, sum(each)) + of_one(config.linux.overhead)


def memory(containers: Iterable[v1.LinuxContainerResources]) -> int:
    """The bytes that containers may have together; 0 for no limit."""
    each = [int(_memory(one)) for one in containers]
    return sum(each) if all(each) else 0


def _memory(resources: v1.LinuxContainerResources) -> float:
    limit = max(0, resources.memory_limit_in_bytes)
    # Counted to no memory limit in the guest, and memory of the host all the same.
    return limit + sum(each.limit for each in resources.hugepage_limits) if limit else 0


def check_shrink(before: int, after: int, held: int, worker_mib: int) -> None:
    """Refuse to lower a pod's memory, in bytes, below what its VM holds of the host's, which
    cannot be given back: whoever lowers the pod's group next would kill the VM.

    Raises `FailedPrecondition`.
    """
    if 0 < after < before and held > after + worker_mib * cgroups.MIB:
        raise FailedPrecondition(
            f"the pod's VM holds {held // cgroups.MIB} MiB, more than the pod would have",
            hint="memory that a guest has used stays with its VM: start the pod anew",
        )
