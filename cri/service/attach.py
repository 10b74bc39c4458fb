"""Attach: a one-shot URL for the streams of a container's own process."""

from __future__ import annotations

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.streaming.requests import Attach, Wanted


async def run(daemon: Daemon, request: v1.AttachRequest) -> v1.AttachResponse:
    container, _ = daemon.joinable_container(request.container_id)
    wanted = Wanted(request.stdin, request.stdout, request.stderr, request.tty)
    return v1.AttachResponse(url=daemon.streaming_url(Attach(container.id, wanted)))
