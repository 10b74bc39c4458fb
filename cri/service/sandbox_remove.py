"""RemovePodSandbox: stopped if need be, and all that is left of it removed."""

from __future__ import annotations

import time

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Pod
from cri.service import sandbox_stop
from hostlib import failpoint
from hostlib.errors import NotFound


async def run(daemon: Daemon, request: v1.RemovePodSandboxRequest) -> v1.RemovePodSandboxResponse:
    try:
        pod = daemon.index.pods.find(request.pod_sandbox_id)
    except NotFound:
        return v1.RemovePodSandboxResponse()
    with daemon.names.claim(f"removal of pod {pod.id}", ("remove", pod.id)):
        await remove(daemon, pod)
    return v1.RemovePodSandboxResponse()


async def remove(daemon: Daemon, pod: Pod) -> None:
    """Remove the pod and its containers, by force."""
    await sandbox_stop.stop(daemon, pod)
    await failpoint.hit("sandbox.remove")
    containers = daemon.index.containers_of(pod.id)
    # Out of the index first, so that the shim's end surprises nobody.
    daemon.index.pod_removed(pod, time.time_ns())
    daemon.forget(pod)
    for each in containers:
        daemon.release_images(each.record)
    await daemon.end_stopped(pod.vm)
    await daemon.clean(pod.vm)
