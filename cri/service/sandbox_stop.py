"""StopPodSandbox: containers killed, the VM ended, the network given back; records stay."""

from __future__ import annotations

import asyncio
import time

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Pod
from hostlib import failpoint
from hostlib.errors import NotFound, Unavailable


async def run(daemon: Daemon, request: v1.StopPodSandboxRequest) -> v1.StopPodSandboxResponse:
    try:
        pod = daemon.index.pods.find(request.pod_sandbox_id)
    except NotFound:
        return v1.StopPodSandboxResponse()
    await stop(daemon, pod)
    return v1.StopPodSandboxResponse()


async def stop(daemon: Daemon, pod: Pod) -> None:
    """Stop the pod; idempotent, and right after any failure.

    The network goes while the VM ends, link first: the address is free only when nothing of the pod
    can be reached or sends any more.
    """
    await failpoint.hit("sandbox.stop")
    # Neither gives up where the other fails.
    ended, detached = await asyncio.gather(
        _end_vm(daemon, pod), _detach(daemon, pod), return_exceptions=True
    )
    for failure in (ended, detached):
        if failure is not None:
            raise failure


async def _end_vm(daemon: Daemon, pod: Pod) -> None:
    try:
        await daemon.shim_of(pod).pod_stop()
    except Unavailable:
        # The shim is gone, and its VM with it: nothing is left to stop.
        await daemon.lose(pod, pod.record.reason or "the pod's shim is gone")
    daemon.index.pod_stopped(pod, "stopped", time.time_ns())


async def _detach(daemon: Daemon, pod: Pod) -> None:
    await failpoint.hit("sandbox.detach")
    await daemon.network.detach(
        pod.vm.id, pod.vm.netns, daemon.network_identity(pod), pod.record.network.cni
    )
