"""A container's resources, as its guest's cgroups limit them."""

from __future__ import annotations

from typing import Any

from cri.api import v1_pb2 as v1
from cri.oci.security import OTHER_RUNTIME
from hostlib.devices import default_rules
from hostlib.errors import Unimplemented


def resources(wanted: v1.LinuxContainerResources, *, privileged: bool) -> dict[str, Any]:
    """The spec's `linux.resources`. Raises `Unimplemented`."""
    for limit in wanted.hugepage_limits:
        if limit.limit:
            raise Unimplemented(f"huge pages ({limit.page_size}) are not supported yet")
    if wanted.cpuset_cpus or wanted.cpuset_mems:
        raise Unimplemented(
            "cpusets name the host's CPUs, which a microVM does not see", hint=OTHER_RUNTIME
        )
    memory = {
        "limit": wanted.memory_limit_in_bytes,
        "swap": wanted.memory_swap_limit_in_bytes,
    }
    cpu = {
        "shares": wanted.cpu_shares,
        "quota": wanted.cpu_quota,
        "period": wanted.cpu_period,
    }
    found: dict[str, Any] = {
        "memory": {key: int(value) for key, value in memory.items() if value},
        "cpu": {key: int(value) for key, value in cpu.items() if value},
        "unified": dict(wanted.unified),
        # No rules are no filter: a privileged container may use every device of its VM.
        "devices": [] if privileged else default_rules(),
    }
    return {key: value for key, value in found.items() if value}
