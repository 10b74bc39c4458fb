"""A pod's bounds (`cri.pod_limits`) and processors (`cri.cpusets`) put in force, and kept so as its
containers come, change and go. What cannot be is logged: the containers' own limits hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import json_format

from cri import cgroups, cpusets, pod_limits, sizes
from cri.api import v1_pb2 as v1
from cri.pod_limits import Bounds
from cri.vms import Vm
from hostlib.cgroup import NO_LIMIT, Above, Limits
from hostlib.errors import ThawError
from hostlib.tasks import in_thread
from shim.records import ContainerRecord

if TYPE_CHECKING:
    from cri.daemon import Daemon
    from cri.index import Pod

log = logging.getLogger(__name__)

Resources = v1.LinuxContainerResources


def resources_of(record: ContainerRecord) -> Resources:
    """What is in force for a container, by its record."""
    found = Resources()
    body = (record.config.get("linux") or {}).get("resources") or {}
    json_format.ParseDict(body, found, ignore_unknown_fields=True)
    return found


def config_of(pod: Pod) -> v1.PodSandboxConfig:
    """The sandbox's config, from its record."""
    config = v1.PodSandboxConfig()
    json_format.ParseDict(pod.record.config, config, ignore_unknown_fields=True)
    return config


def of_pod(daemon: Daemon, pod: Pod, but: Mapping[str, Resources] = {}) -> dict[str, Resources]:
    """The resources of the pod's containers that have not ended, by id; `but` for those it names,
    which need not be there yet."""
    found = {
        each.id: resources_of(each.record)
        for each in daemon.index.containers_of(pod.id)
        if each.record.state != "exited"
    }
    return {**found, **but}


def worker_mib(daemon: Daemon, vm: Vm) -> int:
    """The memory that the VM takes beyond its containers'."""
    snapshot = daemon.snapshots.ready(vm.shape)
    emulated = snapshot is None or snapshot.accelerator != "kvm"
    grown = vm.goal.memory_mib - vm.base.memory_mib
    return cgroups.worker_mib(vm.base.vcpus, emulated=emulated) + cgroups.growth_mib(
        grown, sizes.region_mib(daemon, vm)
    )


def bounds(
    daemon: Daemon, vm: Vm, config: v1.PodSandboxConfig, found: Mapping[str, Resources]
) -> Bounds:
    goal = vm.goal
    return pod_limits.of(
        config,
        list(found.values()),
        above=vm.above,
        worker_mib=worker_mib(daemon, vm),
        grown_mib=goal.memory_mib if vm.stretched or goal.memory_mib > vm.base.memory_mib else 0,
    )


def enter(
    daemon: Daemon, vm: Vm, config: v1.PodSandboxConfig, found: Mapping[str, Resources]
) -> None:
    """Move a VM into its pod's cgroup, with its limits, in the background: `vm.entering`."""
    vm.cgroup = daemon.cgroups.path(vm.id, config.linux.cgroup_parent)
    vm.above = daemon.cgroups.above(vm.cgroup) if config.linux.cgroup_parent else Above()
    vm.bounds = bounds(daemon, vm, config, found)
    # By a former daemon.
    vm.pinned = cpusets.pinned(vm.qemu_pid) if vm.qemu_pid else frozenset()
    pids = [pid for pid in (vm.qemu_pid, vm.shim_pid) if pid]
    work = in_thread(daemon.cgroups.enter, vm.cgroup, pids, vm.bounds.group)
    vm.entering = daemon.tasks.start(work, f"cgroup of VM {vm.id}")


async def bound_guest(daemon: Daemon, pod: Pod) -> None:
    """Tell the guest what its containers may have together."""
    try:
        await daemon.shim_of(pod).pod_limit(pod.vm.bounds.guest)
    except ThawError as error:
        log.warning("the guest of pod %s keeps its bound: %s", pod.id, error)


def begin(daemon: Daemon, pod: Pod) -> None:
    """The same for a pod that has just been bound, or adopted, in the background."""
    if pod.vm.bounds.guest:

        async def work() -> None:
            async with pod.updating:
                await bound_guest(daemon, pod)

        daemon.tasks.start(work(), f"bound of pod {pod.id}")


async def settle(
    daemon: Daemon,
    pod: Pod,
    config: v1.PodSandboxConfig,
    but: Mapping[str, Resources] = {},
    *,
    look: bool = False,
) -> None:
    """Put in force what the pod and its containers come to now; `look` at the limits of the groups
    above anew. Costs nothing where nothing changes."""
    vm = pod.vm
    if look and config.linux.cgroup_parent:
        vm.above = await in_thread(daemon.cgroups.above, vm.cgroup)
    found = of_pod(daemon, pod, but)
    await _pin(vm, found)
    if bounds(daemon, vm, config, found) == vm.bounds:
        return
    async with pod.updating:
        wanted, before = bounds(daemon, vm, config, found), vm.bounds
        vm.bounds = wanted
        grows = not wanted.guest or wanted.guest > before.guest > 0
        if not grows and wanted.guest != before.guest:
            await bound_guest(daemon, pod)
        if vm.entering is not None:
            await asyncio.wait([vm.entering])
        await in_thread(daemon.cgroups.limit, vm.cgroup, _lifted(before.group, wanted.group))
        if grows and wanted.guest != before.guest:
            await bound_guest(daemon, pod)


def _lifted(before: Limits, after: Limits) -> Limits:
    """`after`, and no limit where there was one before."""
    return Limits(
        memory=NO_LIMIT if after.memory is None and before.memory is not None else after.memory,
        cpus=NO_LIMIT if after.cpus is None and before.cpus is not None else after.cpus,
    )


async def _pin(vm: Vm, found: Mapping[str, Resources]) -> None:
    cpus = cpusets.union(each.cpuset_cpus for each in found.values())
    if cpus != vm.pinned and vm.qemu_pid:
        vm.pinned = cpus
        await in_thread(cpusets.pin, vm.qemu_pid, cpus)


def huge_pages(resources: Resources) -> int:
    """The bytes of huge pages that it may have."""
    return sum(each.limit for each in resources.hugepage_limits)


def held(vm: Vm) -> int:
    """The bytes that the VM holds of the host's memory and can give back to nobody. Blocking."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{vm.qemu_pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
