"""Exec: a one-shot URL for a command in a container."""

from __future__ import annotations

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.streaming.requests import Exec, Wanted
from hostlib.errors import InvalidArgument


async def run(daemon: Daemon, request: v1.ExecRequest) -> v1.ExecResponse:
    container, _ = daemon.running_container(request.container_id)
    if not request.cmd:
        raise InvalidArgument("no command to run", hint="set cmd")
    wanted = Wanted(request.stdin, request.stdout, request.stderr, request.tty)
    return v1.ExecResponse(url=daemon.streaming_url(Exec(container.id, tuple(request.cmd), wanted)))
