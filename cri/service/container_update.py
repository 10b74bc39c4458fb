"""UpdateContainerResources: while it runs, or before it is started. What the request leaves out, or
sets to 0, stays as it is."""

from __future__ import annotations

import dataclasses

from google.protobuf import json_format

from cri import cpusets, pod_limits, settle
from cri.api import v1_pb2 as v1
from cri.config import shape_size
from cri.daemon import Daemon
from cri.index import Container, Pod
from cri.oci import resources as oci
from cri.service.container_create import guest_cpus, pod_config
from cri.service.container_status import config_of
from hostlib import failpoint
from hostlib.errors import FailedPrecondition, InvalidArgument
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
    """Raises `InvalidArgument`, `ResourceExhausted` beyond the VM's size, `FailedPrecondition`."""
    if container.record.state == "exited":
        raise FailedPrecondition(f"container {container.id} has ended")
    pod = daemon.pod_of(container.record)
    if not pod.ready:
        raise FailedPrecondition(f"pod {pod.id} is not ready: {pod.record.reason}")
    present = settle.resources_of(container.record)
    merged = oci.merge(present, wanted)
    pod_limits.check_fits(merged, pod.vm.shape)
    await _check_shrink(daemon, pod, container, merged)
    sandbox = pod_config(pod)
    but = {container.id: merged}
    grows = _grows(present, merged)
    try:
        if grows:
            await settle.settle(daemon, pod, sandbox, but, look=True)
        await failpoint.hit("container.update")
        await _apply(daemon, pod, container, merged)
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
    daemon: Daemon, pod: Pod, container: Container, merged: v1.LinuxContainerResources
) -> None:
    if not pod.vm.bounds.guest:
        return
    before = settle.of_pod(daemon, pod)
    after = {**before, container.id: merged}
    pod_limits.check_shrink(
        pod_limits.memory(before.values()),
        pod_limits.memory(after.values()),
        await in_thread(settle.held, pod.vm),
        settle.worker_mib(daemon, pod.vm),
    )


async def _apply(
    daemon: Daemon, pod: Pod, container: Container, merged: v1.LinuxContainerResources
) -> None:
    config = config_of(container.record)
    config.linux.resources.CopyFrom(merged)
    body = json_format.MessageToDict(config, preserving_proto_field_name=True)
    cpus = guest_cpus(daemon, pod, merged, container.id)
    await daemon.shim_of(pod).container_update(
        container.id,
        # Of a container that is kept to some processors no longer, all are set.
        oci.limits(merged, cpus or cpusets.text(range(shape_size(pod.vm.shape)[0]))),
        merged.oom_score_adj,
        body,
        cpus,
    )
    await failpoint.hit("container.updated")
    container.record = dataclasses.replace(container.record, config=body, guest_cpus=cpus)
    if container.process is not None:
        container.process["oomScoreAdj"] = merged.oom_score_adj
