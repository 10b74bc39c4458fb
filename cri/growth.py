"""How large a pod's VM must be, and how it becomes so while it runs.

A VM begins as a shape (`cri.shapes`). It grows when limits are raised beyond what it has, before
they are, and becomes smaller again when they are lowered, after they were: by virtio-mem and
plugged vCPUs (`vmm.growth`). What the pod's group on the host must have besides is set before, so
that the kernel does not kill what grows.

The shim, which owns the VM, says how large it is: a daemon that starts after one that died in the
midst finds out, and `begin` undoes what no limit needs.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from cri import pod_limits, settle, shapes, sizes
from cri.api import v1_pb2 as v1
from cri.shapes import Size
from cri.vms import Vm
from hostlib import failpoint
from hostlib.errors import ResourceExhausted, ThawError

if TYPE_CHECKING:
    from cri.daemon import Daemon
    from cri.index import Pod

log = logging.getLogger(__name__)

Resources = v1.LinuxContainerResources


def target(
    daemon: Daemon, vm: Vm, config: v1.PodSandboxConfig, found: Mapping[str, Resources]
) -> Size:
    """What the VM must be for these containers. Raises `ResourceExhausted`."""
    return sizes.plan(vm.base, sizes.top(daemon, vm), *sizes.needed(config, found.values()))


@contextlib.asynccontextmanager
async def room(
    daemon: Daemon,
    pod: Pod,
    config: v1.PodSandboxConfig,
    but: Mapping[str, Resources] = {},
    *,
    more: bool = False,
    look: bool = False,
) -> AsyncIterator[None]:
    """Inside, the pod's VM holds the pod with `config` and the containers `but`, which are being
    made or changed; and so do its bounds, where they ask for `more` than before. What fails inside
    takes back what the VM has grown by; the bounds are the caller's to settle afterwards.

    Raises `ResourceExhausted` when the VM cannot become so large, or its guest does not take it;
    the VM is as before then.
    """
    vm, former = pod.vm, pod.vm.size
    wanted = target(daemon, vm, config, settle.of_pod(daemon, pod, but))
    vm.claims.append(wanted)
    grows = not wanted.within(former)
    try:
        # Processors take nothing of the host before their quota is raised.
        if more or wanted.memory_mib > former.memory_mib:
            await settle.settle(daemon, pod, config, but, look=look)
        if grows:
            await failpoint.hit("growth.begin")
            await _resize(daemon, pod, wanted)
            await failpoint.hit("growth.grown")
        yield
    except BaseException:
        vm.claims.remove(wanted)
        if grows:
            await _lower(daemon, pod, settle.config_of(pod), former)
        raise
    else:
        vm.claims.remove(wanted)


async def _resize(daemon: Daemon, pod: Pod, wanted: Size) -> None:
    """Make the VM hold `wanted` too."""
    vm = pod.vm
    async with pod.sizing:
        wanted = wanted.join(vm.size)
        if wanted != vm.size:
            vm.became(await daemon.shim_of(pod).pod_resize(wanted, sizes.region_mib(daemon, vm)))


async def _lower(daemon: Daemon, pod: Pod, config: v1.PodSandboxConfig, keep: Size) -> None:
    """Make the VM no larger than `keep`, what its containers need and what calls under way do."""
    vm = pod.vm
    async with pod.sizing:
        wanted = keep
        for each in (*vm.claims, _least(daemon, pod, config)):
            wanted = wanted.join(each)
        wanted = Size(min(wanted.vcpus, vm.size.vcpus), min(wanted.memory_mib, vm.size.memory_mib))
        if wanted == vm.size:
            return
        try:
            await failpoint.hit("growth.lower")
            vm.became(await daemon.shim_of(pod).pod_resize(wanted, sizes.region_mib(daemon, vm)))
        except ThawError as error:
            log.warning("the VM of pod %s stays %s: %s", pod.id, vm.size, error)


def _least(daemon: Daemon, pod: Pod, config: v1.PodSandboxConfig) -> Size:
    try:
        return target(daemon, pod.vm, config, settle.of_pod(daemon, pod))
    except ResourceExhausted:
        return pod.vm.size


async def lower(daemon: Daemon, pod: Pod, config: v1.PodSandboxConfig) -> None:
    """Take back from the VM what its pod's limits no longer need, as far as its guest can spare it.
    Where a container has no limit, it may use all that the VM has."""
    vm = pod.vm
    if vm.size == vm.base:
        return
    found = list(settle.of_pod(daemon, pod).values())
    free_cpus = not all(map(shapes.quota, found))
    free_memory = not all(pod_limits.memory([one]) for one in found)
    await _lower(
        daemon,
        pod,
        config,
        Size(
            vm.size.vcpus if free_cpus else vm.base.vcpus,
            vm.size.memory_mib if free_memory else vm.base.memory_mib,
        ),
    )


def spare(
    daemon: Daemon, pod: Pod, config: v1.PodSandboxConfig, but: Mapping[str, Resources]
) -> int:
    """The bytes that the VM could give back once the containers `but` have these limits."""
    vm = pod.vm
    wanted = target(daemon, vm, config, settle.of_pod(daemon, pod, but))
    return max(0, vm.size.memory_mib - wanted.memory_mib) << 20


def heard(daemon: Daemon, pod: Pod, size: object) -> None:
    """The shim says what the VM has become. It is news where a former daemon asked for it."""
    vm, known = pod.vm, pod.vm.size
    vm.became(Size.from_wire(size, known))
    if vm.size != known and not vm.claims and not pod.sizing.locked():
        begin(daemon, pod, settle.config_of(pod))


def begin(daemon: Daemon, pod: Pod, config: v1.PodSandboxConfig) -> None:
    """`lower` for a pod that has just been adopted, in the background."""
    if pod.vm.size == pod.vm.base:
        return

    async def work() -> None:
        async with pod.changing:
            await lower(daemon, pod, config)
            await settle.settle(daemon, pod, config)

    daemon.tasks.start(work(), f"size of pod {pod.id}")
