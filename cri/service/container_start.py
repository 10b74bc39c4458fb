"""StartContainer: the agent execs the process. One that cannot be started has ended, as with
containerd: EXITED, exit code 128, reason StartError."""

from __future__ import annotations

import dataclasses
import time

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Container
from hostlib import failpoint
from hostlib.errors import FailedPrecondition, ThawError, Unavailable

START_ERROR = 128


async def run(daemon: Daemon, request: v1.StartContainerRequest) -> v1.StartContainerResponse:
    container = daemon.index.containers.find(request.container_id)
    name = f"start of container {container.id}"
    with daemon.names.claim(name, ("start", container.id)), daemon.pool.giving_way():
        await start(daemon, container)
    return v1.StartContainerResponse()


async def start(daemon: Daemon, container: Container) -> None:
    record = container.record
    if record.state != "created":
        raise FailedPrecondition(
            f"container {container.id} is {record.state}; only a created one can be started"
        )
    pod = daemon.pod_of(record)
    if not pod.ready:
        raise FailedPrecondition(f"pod {pod.id} is not ready: {pod.record.reason}")
    try:
        with daemon.trace_of(pod).step(f"start {record.metadata.name}"):
            await failpoint.hit("container.start")
            started_at = await daemon.shim_of(pod).container_start(container.id)
    except Unavailable:
        raise
    except ThawError as error:
        _failed(daemon, container, str(error))
        raise
    daemon.index.container_started(container, started_at or time.time_ns())


def _failed(daemon: Daemon, container: Container, message: str) -> None:
    if container.record.state == "exited":
        # The shim has said so.
        return
    now = time.time_ns()
    daemon.index.update_container(
        dataclasses.replace(
            container.record,
            state="exited",
            exit_code=START_ERROR,
            reason="StartError",
            message=message,
            started_at=now,
            finished_at=now,
        )
    )
