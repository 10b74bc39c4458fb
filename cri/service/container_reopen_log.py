"""ReopenContainerLog: after a rotation. Only a container that runs has a log open."""

from __future__ import annotations

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon


async def run(
    daemon: Daemon, request: v1.ReopenContainerLogRequest
) -> v1.ReopenContainerLogResponse:
    container, pod = daemon.running_container(request.container_id)
    await daemon.shim_of(pod).container_reopen_log(container.id)
    return v1.ReopenContainerLogResponse()
