"""StopContainer: the stop signal, the time of grace, then SIGKILL."""

from __future__ import annotations

from cri import signals
from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Container
from hostlib import failpoint
from hostlib.errors import NotFound, Unavailable
from shim import records
from shim.records import ContainerRecord


async def run(daemon: Daemon, request: v1.StopContainerRequest) -> v1.StopContainerResponse:
    try:
        container = daemon.index.containers.find(request.container_id)
    except NotFound:
        return v1.StopContainerResponse()
    await stop(daemon, container, float(max(0, request.timeout)))
    return v1.StopContainerResponse()


async def stop(daemon: Daemon, container: Container, timeout: float) -> None:
    """Stop the container within `timeout` seconds of grace; idempotent."""
    if container.record.state != "running":
        return
    await failpoint.hit("container.stop")
    pod = daemon.pod_of(container.record)
    number = signals.number(container.record.stop_signal)
    try:
        shim = daemon.shim_of(pod)
        await shim.container_stop(container.id, number, timeout)
    except Unavailable:
        await daemon.lose(pod, "the pod's shim is gone")
        return
    if container.record.state == "running":
        # The event is behind the answer: ask.
        for each in (await shim.describe()).get("containers", ()):
            daemon.index.update_container(records.from_dict(ContainerRecord, each))
