"""UpdatePodSandboxResources: the sum of a pod's containers and its overhead, changed while it runs.
The containers' own limits are changed by calls of their own."""

from __future__ import annotations

import dataclasses

from google.protobuf import json_format

from cri import growth, settle
from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Pod
from cri.oci import resources as oci
from hostlib import failpoint
from hostlib.errors import FailedPrecondition


async def run(
    daemon: Daemon, request: v1.UpdatePodSandboxResourcesRequest
) -> v1.UpdatePodSandboxResourcesResponse:
    pod = daemon.index.pods.find(request.pod_sandbox_id)
    async with pod.changing:
        await update(daemon, pod, request)
    return v1.UpdatePodSandboxResourcesResponse()


async def update(daemon: Daemon, pod: Pod, request: v1.UpdatePodSandboxResourcesRequest) -> None:
    """Raises `InvalidArgument`, `ResourceExhausted` beyond what the VM can become,
    `FailedPrecondition`."""
    if not pod.ready:
        raise FailedPrecondition(f"pod {pod.id} is not ready: {pod.record.reason}")
    config = settle.config_of(pod)
    if request.HasField("resources"):
        oci.check(request.resources)
        config.linux.resources.CopyFrom(request.resources)
    if request.HasField("overhead"):
        oci.check(request.overhead)
        config.linux.overhead.CopyFrom(request.overhead)
    body = json_format.MessageToDict(config, preserving_proto_field_name=True)
    try:
        async with growth.room(daemon, pod, config, look=True):
            await failpoint.hit("sandbox.update")
            await daemon.shim_of(pod).pod_update(body)
            pod.record = dataclasses.replace(pod.record, config=body, linux=body.get("linux", {}))
        await growth.lower(daemon, pod, config)
    finally:
        # What was before, where it failed.
        await settle.settle(daemon, pod, settle.config_of(pod), look=True)
