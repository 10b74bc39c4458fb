"""UpdateContainerResources: while it runs, or before it is started. What the request leaves out, or
sets to 0, stays as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from google.protobuf import json_format

from cri import cpusets, growth, pod_limits, settle
from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Container, Pod
from cri.oci import resources as oci
from cri.service.container_create import guest_cpus
from cri.service.container_status import config_of
from hostlib import failpoint
from hostlib.errors import FailedPrecondition, InvalidArgument, ThawError
from hostlib.tasks import in_thread


async def run(
    daemon: Daemon, request: v1.UpdateContainerResourcesRequest
) -> v1.UpdateContainerResourcesResponse:
    if request.HasField("windows"):
        raise InvalidArgument("Windows containers are not supported")
    container = daemon.index.containers.find(request.container_id)
    async with container.updating:
        await update(daemon, container, request.linux)
    return v1.UpdateContainerResourcesResponse()


async def update(daemon: Daemon, container: Container, wanted: v1.LinuxContainerResources) -> None:
    """Raises `InvalidArgument`, `ResourceExhausted` beyond what the VM can become,
    `FailedPrecondition`."""
    if container.record.state == "exited":
        raise FailedPrecondition(f"container {container.id} has ended")
    pod = daemon.pod_of(container.record)
    if not pod.ready:
        raise FailedPrecondition(f"pod {pod.id} is not ready: {pod.record.reason}")
    present = settle.resources_of(container.record)
    merged = oci.merge(present, wanted)
    sandbox = settle.config_of(pod)
    but = {container.id: merged}
    grows = _grows(present, merged)
    try:
        async with growth.room(daemon, pod, sandbox, but, more=grows, look=True):
            spare = growth.spare(daemon, pod, sandbox, but)
            await _check_shrink(daemon, pod, but, spare)
            await failpoint.hit("container.update")
            before = settle.of_pod(daemon, pod)
            await _apply(daemon, pod, container, merged)
        if spare:
            await growth.lower(daemon, pod, sandbox)
            await _check_shrunk(daemon, pod, sandbox, container, before)
    finally:
        await settle.settle(daemon, pod, sandbox, look=not grows)


def _grows(before: v1.LinuxContainerResources, after: v1.LinuxContainerResources) -> bool:
    """Whether the pod's bounds have to make room first."""
    return (
        after.memory_limit_in_bytes <= 0
        or after.memory_limit_in_bytes > before.memory_limit_in_bytes > 0
        or settle.huge_pages(after) > settle.huge_pages(before)
    )


async def _check_shrink(
    daemon: Daemon,
    pod: Pod,
    but: Mapping[str, v1.LinuxContainerResources],
    spare: int,
    before: Mapping[str, v1.LinuxContainerResources] | None = None,
) -> None:
    """Refuse limits below what the VM holds, but for the bytes that it may give back."""
    if not pod.vm.bounds.guest:
        return
    pod_limits.check_shrink(
        pod_limits.memory((before or settle.of_pod(daemon, pod)).values()),
        pod_limits.memory(settle.of_pod(daemon, pod, but).values()),
        await in_thread(settle.held, pod.vm) - spare,
        settle.worker_mib(daemon, pod.vm),
    )


async def _check_shrunk(
    daemon: Daemon,
    pod: Pod,
    sandbox: v1.PodSandboxConfig,
    container: Container,
    before: Mapping[str, v1.LinuxContainerResources],
) -> None:
    """The same once it has given back what it could; what was is in force again where it fails."""
    try:
        await failpoint.hit("container.lowered")
        await _check_shrink(daemon, pod, {}, 0, before)
    except ThawError:
        present = {container.id: before[container.id]}
        async with growth.room(daemon, pod, sandbox, present, more=True):
            await _apply(daemon, pod, container, present[container.id])
        raise


async def _apply(
    daemon: Daemon, pod: Pod, container: Container, merged: v1.LinuxContainerResources
) -> None:
    config = config_of(container.record)
    config.linux.resources.CopyFrom(merged)
    body = json_format.MessageToDict(config, preserving_proto_field_name=True)
    cpus = guest_cpus(daemon, pod, merged, container.id)
    await daemon.shim_of(pod).container_update(
        container.id,
        # Of a container that is kept to some processors no longer, all are set, and those to come.
        oci.limits(merged, cpus or cpusets.text(range(pod.vm.most.vcpus))),
        merged.oom_score_adj,
        body,
        cpus,
    )
    await failpoint.hit("container.updated")
    container.record = dataclasses.replace(container.record, config=body, guest_cpus=cpus)
    if container.process is not None:
        container.process["oomScoreAdj"] = merged.oom_score_adj
