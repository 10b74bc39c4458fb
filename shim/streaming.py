"""The requests that carry streams: execs, attached clients, forwarded connections."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Mapping

from hostlib.errors import InvalidArgument
from shim import params as read
from shim import relay
from shim.pod import Pod
from shim.protocol import Message, Wire
from shim.server import Answer, Handler


def handlers(pod: Callable[[], Pod]) -> Mapping[str, Handler]:
    """The handlers, by method; `pod` raises where there is none yet."""
    streaming = _Streaming(pod)
    return {
        "exec_sync": streaming.exec_sync,
        "exec.open": streaming.exec_open,
        "exec.wait": streaming.exec_wait,
        "exec.resize": streaming.exec_resize,
        "attach.open": streaming.attach_open,
        "container.resize": streaming.container_resize,
        "forward.open": streaming.forward_open,
    }


@dataclasses.dataclass(frozen=True)
class _Streaming:
    pod: Callable[[], Pod]

    async def exec_sync(self, params: Wire, _message: Message) -> Answer:
        pod = self.pod()
        container = pod.running(params.get("container"))
        process, timeout = read.object_of(params, "process"), read.seconds(params)
        return await pod.execs.run(pod.vm, container.id, process, timeout)

    async def exec_open(self, params: Wire, message: Message) -> Answer:
        pod = self.pod()
        container = pod.running(params.get("container"))
        process, terminal = read.object_of(params, "process"), params.get("terminal") is True
        sockets = _sockets(params, message)
        name = await pod.execs.open(pod.vm, container.id, process, sockets, terminal=terminal)
        return Answer({"exec": name})

    async def exec_wait(self, params: Wire, _message: Message) -> Answer:
        return Answer({"exit_code": await self.pod().execs.wait(str(params.get("exec")))})

    async def exec_resize(self, params: Wire, _message: Message) -> Answer:
        pod = self.pod()
        await pod.execs.resize(pod.vm, str(params.get("exec")), *_size(params))
        return Answer()

    async def attach_open(self, params: Wire, message: Message) -> Answer:
        container = self.pod().joinable(params.get("container"))
        await container.attach(_sockets(params, message))
        return Answer()

    async def container_resize(self, params: Wire, _message: Message) -> Answer:
        await self.pod().joinable(params.get("container")).resize(*_size(params))
        return Answer()

    async def forward_open(self, params: Wire, message: Message) -> Answer:
        pod = self.pod()
        pod.require_running()
        port = params.get("port")
        if not isinstance(port, int) or not 1 <= port <= 65535:
            raise InvalidArgument(f"bad port {port!r}")
        if len(message.fds) != 1:
            raise InvalidArgument("forward.open takes one socket")
        await pod.forwards.open(pod.vm, port, relay.own(message.fds[0]))
        return Answer()


def _sockets(params: Wire, message: Message) -> dict[str, socket.socket]:
    """The sockets of a request, by the streams that it names in their order."""
    names = params.get("streams")
    if not isinstance(names, list) or not set(names) <= {"stdin", "stdout", "stderr"}:
        raise InvalidArgument("streams are a list of stdin, stdout, stderr")
    if len(set(names)) != len(names) or len(names) != len(message.fds):
        raise InvalidArgument(f"{len(message.fds)} descriptors came for the streams {names}")
    found: dict[str, socket.socket] = {}
    try:
        for name, descriptor in zip(names, message.fds, strict=True):
            found[name] = relay.own(descriptor)
    except BaseException:
        for sock in found.values():
            sock.close()
        raise
    return found


def _size(params: Wire) -> tuple[int, int]:
    width, height = params.get("width"), params.get("height")
    for number in (width, height):
        if not isinstance(number, int) or not 0 <= number <= 65535:
            raise InvalidArgument(f"bad terminal size {width!r} x {height!r}")
    return int(str(width)), int(str(height))
