"""Connections to local ports, carried to ports of a pod."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import re
import socket
from dataclasses import dataclass
from typing import Any, Final

from cli import show
from cli.client import parse_hint
from cli.streaming import CHUNK, Lost, Stream, Tls, Wire, connect
from cri.streaming.negotiation import PORT_FORWARD
from cri.streaming.remote_command import STREAM_TYPE
from cri.streaming.spdy.errors import StreamClosed
from hostlib.errors import FailedPrecondition, ThawError, Unavailable
from hostlib.tasks import Tasks

ADDRESSES: Final = ("127.0.0.1", "::1")

MAX_MESSAGE: Final = 8 * 1024
"""Bytes of the server's text about a connection that failed."""
BACKLOG: Final = 256
_ATTEMPTS: Final = 20

_PREFIX: Final = re.compile(r"^error forwarding port [0-9]+ to pod [^:]*: ")
"""What runtimes put before the reason, for kubectl."""


@dataclass(frozen=True)
class Port:
    """A forwarded port."""

    local: int
    """0: one that is free."""
    remote: int


async def forward(url: str, ports: list[Port], tls: Tls) -> None:
    """Listens, and carries what connects, until it is cancelled.

    Raises `Unavailable` when the connection is lost, `FailedPrecondition` when a port cannot be
    listened on, and what `connect` raises.
    """
    async with contextlib.AsyncExitStack() as stack:
        listening = [(stack.enter_context(sock), port) for port in ports for sock in listen(port)]
        wire = await stack.enter_async_context(connect(url, PORT_FORWARD[0].name, tls))
        forwarder = Forwarder(wire)
        stack.push_async_callback(forwarder.close)
        for sock, port in listening:
            forwarder.serve(sock, port.remote)
            host, number = sock.getsockname()[:2]
            name = f"[{host}]" if ":" in host else host
            print(f"Forwarding from {name}:{number} -> {port.remote}", flush=True)
        await wire.over
        wire.check()


def listen(port: Port) -> list[socket.socket]:
    """Sockets on one local port, for IPv4 and, where the host has it, IPv6.

    Raises `FailedPrecondition`.
    """
    attempts = 1 if port.local else _ATTEMPTS
    for attempt in range(attempts):
        sockets: list[socket.socket] = []
        number = port.local
        for address in ADDRESSES:
            try:
                sock = _bound(address, number)
            except OSError as error:
                for each in sockets:
                    each.close()
                # A free port may be free for one family alone.
                if attempt + 1 < attempts:
                    break
                raise FailedPrecondition(
                    f"cannot listen on {address} port {number}: {error.strerror}",
                    hint=f"name another local port, or :{port.remote} for one that is free",
                ) from error
            if sock is not None:
                sockets.append(sock)
                number = sock.getsockname()[1]
        else:
            return sockets
    raise AssertionError("the last attempt returns or raises")


def _bound(address: str, port: int) -> socket.socket | None:
    """None where the host has no such address. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return None
        raise
    return sock


class Forwarder:
    """Carries connections over one connection to the streaming server."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._tasks = Tasks()
        self._requests = itertools.count()

    def serve(self, listener: socket.socket, port: int) -> None:
        """Takes what connects to `listener` to the pod's `port`."""
        self._tasks.start(self._accept(listener, port), f"port {port}")

    async def close(self) -> None:
        await self._tasks.close()

    async def _accept(self, listener: socket.socket, port: int) -> None:
        loop = asyncio.get_running_loop()
        local = listener.getsockname()[1]
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, most likely; connections that end give some back.
                show.warn(f"port {local}: {error.strerror}")
                await asyncio.sleep(0.1)
                continue
            self._tasks.start(self._carry(sock, local, port), f"connection to port {port}")

    async def _carry(self, sock: socket.socket, local: int, port: int) -> None:
        sock.setblocking(False)
        opened: list[Stream] = []
        try:
            headers = {"port": str(port), "requestid": str(next(self._requests))}
            errors = self._wire.open({STREAM_TYPE: "error", **headers}, fin=True)
            opened.append(errors)
            data = self._wire.open({STREAM_TYPE: "data", **headers})
            opened.append(data)
            for stream in opened:
                await stream.accepted()
                if stream.reset_by_peer:
                    raise Unavailable("the streaming server takes no more connections")
            await _join(sock, data, errors)
        except Lost:
            # The whole command ends, and says so.
            pass
        except ThawError as error:
            show.error(Unavailable(f"port {local} -> {port}: {error.message}", hint=error.hint))
        finally:
            for stream in opened:
                stream.reset()
            sock.close()


async def _join(sock: socket.socket, data: Stream, errors: Stream) -> None:
    """Carries both ways until both have ended, each by itself, or either side broke off.

    Raises `Unavailable` with what the server says of a connection that failed.
    """
    both = asyncio.create_task(_both_ways(sock, data))
    told = asyncio.create_task(errors.read_all(MAX_MESSAGE))
    try:
        first: list[asyncio.Task[Any]] = [both, told]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not (told.done() and told.result()):
            with contextlib.suppress(StreamClosed):
                await both
        if text := await told:
            message, hint = parse_hint(_PREFIX.sub("", text.decode(errors="replace")))
            raise Unavailable(message, hint=hint)
    except OSError:
        # The local end has left.
        pass
    finally:
        for task in (both, told):
            task.cancel()
        await asyncio.gather(both, told, return_exceptions=True)


async def _both_ways(sock: socket.socket, data: Stream) -> None:
    ways = [asyncio.create_task(_send(sock, data)), asyncio.create_task(_receive(data, sock))]
    try:
        await asyncio.gather(*ways)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _send(sock: socket.socket, data: Stream) -> None:
    loop = asyncio.get_running_loop()
    while piece := await loop.sock_recv(sock, CHUNK):
        await data.send(piece)
    data.end()


async def _receive(data: Stream, sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while piece := await data.read():
        await loop.sock_sendall(sock, piece)
    if data.reset_by_peer:
        raise StreamClosed("the pod's end broke off")
    sock.shutdown(socket.SHUT_WR)
