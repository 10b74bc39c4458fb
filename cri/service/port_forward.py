"""PortForward: a one-shot URL for connections to ports of a pod."""

from __future__ import annotations

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.streaming.requests import Forward
from hostlib.errors import FailedPrecondition, InvalidArgument


async def run(daemon: Daemon, request: v1.PortForwardRequest) -> v1.PortForwardResponse:
    pod = daemon.index.pods.find(request.pod_sandbox_id)
    if not pod.ready:
        raise FailedPrecondition(f"pod sandbox {pod.id} is not running")
    for port in request.port:
        if not 0 < port <= 0xFFFF:
            raise InvalidArgument(f"{port} is no port")
    return v1.PortForwardResponse(url=daemon.streaming_url(Forward(pod.id, tuple(request.port))))
