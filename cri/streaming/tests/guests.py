"""A backend whose commands and ports are coroutines of the test, over socket pairs as a shim's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from cri.streaming.certificates import CertificateFiles
from cri.streaming.requests import Attach, Descriptors, Exec, Forward, Running, Wanted
from cri.streaming.server import Options, StreamingServer
from hostlib.errors import ThawError, Unavailable
from hostlib.tasks import Tasks

OUT = Wanted(stdin=False, stdout=True, stderr=False, terminal=False)
IN_OUT = Wanted(stdin=True, stdout=True, stderr=False, terminal=False)
ALL = Wanted(stdin=True, stdout=True, stderr=True, terminal=False)
TERMINAL = Wanted(stdin=True, stdout=True, stderr=False, terminal=True)


@dataclass(eq=False)
class End:
    """The shim's end of a socket pair."""

    sock: socket.socket

    async def read(self, most: int = 65536) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, most)

    async def read_all(self) -> bytes:
        found = bytearray()
        while data := await self.read():
            found += data
        return bytes(found)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def shut(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def hung_up(self) -> bool:
        """Whether the other end is closed; nothing is read or written for that."""
        poll = select.poll()
        poll.register(self.sock, 0)
        return bool(poll.poll(0))

    async def closed_by_peer(self) -> None:
        """When nothing can be written any more. Raises nothing."""
        with contextlib.suppress(OSError):
            while True:
                await self.write(b"." * 65536)


def take(fd: int | None) -> End:
    """A duplicate, as a shim gets; of nothing, a socket that is closed already."""
    if fd is None:
        sock = socket.socket(socket.AF_UNIX)
        sock.close()
        return End(sock)
    sock = socket.socket(fileno=os.dup(fd))
    sock.setblocking(False)
    return End(sock)


@dataclass(eq=False)
class Guest:
    """A command as it sees itself."""

    request: Exec | Attach
    stdin: End
    stdout: End
    stderr: End
    sizes: list[tuple[int, int]] = field(default_factory=list)
    resized: asyncio.Event = field(default_factory=asyncio.Event)

    def close(self) -> None:
        for end in (self.stdin, self.stdout, self.stderr):
            end.close()


class Started:
    def __init__(self, guest: Guest, task: asyncio.Task[int]) -> None:
        self._guest, self._task = guest, task

    async def wait(self) -> int:
        return await asyncio.shield(self._task)

    async def resize(self, width: int, height: int) -> None:
        self._guest.sizes.append((width, height))
        self._guest.resized.set()


Program = Callable[[Guest], Coroutine[Any, Any, int]]
Listener = Callable[[End], Awaitable[None]]


class FakeBackend:
    """`program` runs for each exec and attachment; `ports` has who listens, others refuse."""

    def __init__(self) -> None:
        self.program: Program | None = None
        self.fail: ThawError | None = None
        self.ports: dict[int, Listener] = {}
        self.tasks = Tasks()
        self.open = 0
        """Forwarded connections whose guest's side runs."""
        self.hold = asyncio.Event()
        self.hold.set()

    async def exec(self, request: Exec, ends: Descriptors) -> Running:
        return self._start(request, ends)

    async def attach(self, request: Attach, ends: Descriptors) -> Running:
        return self._start(request, ends)

    def _start(self, request: Exec | Attach, ends: Descriptors) -> Running:
        if self.fail is not None:
            raise self.fail
        assert self.program is not None
        guest = Guest(request, take(ends.stdin), take(ends.stdout), take(ends.stderr))

        async def live(program: Program) -> int:
            try:
                return await program(guest)
            finally:
                guest.close()

        return Started(guest, self.tasks.start(live(self.program), "program"))

    async def forward(self, pod: str, port: int, end: int) -> None:
        await self.hold.wait()
        if port not in self.ports:
            raise Unavailable(f"failed to connect to localhost:{port}: connection refused")
        self.tasks.start(self._listen(self.ports[port], take(end)), "listener")

    async def _listen(self, listener: Listener, end: End) -> None:
        self.open += 1
        try:
            await listener(end)
        finally:
            self.open -= 1
            end.close()


@contextlib.asynccontextmanager
async def serving(
    backend: FakeBackend,
    *,
    address: str = "127.0.0.1",
    tls: CertificateFiles | None = None,
    idle: float = 60.0,
    creation: float = 10.0,
    connections: int = 64,
) -> AsyncIterator[StreamingServer]:
    server = StreamingServer(Options(address, 0, tls, idle, creation, connections), backend)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        await backend.tasks.close()


def exec_url(server: StreamingServer, wanted: Wanted) -> str:
    return server.url(Exec("container", ("command",), wanted))


def attach_url(server: StreamingServer, wanted: Wanted) -> str:
    return server.url(Attach("container", wanted))


def forward_url(server: StreamingServer, *ports: int) -> str:
    return server.url(Forward("pod", ports))


async def cat(guest: Guest) -> int:
    while data := await guest.stdin.read():
        await guest.stdout.write(data)
    return 0


async def echo(end: End) -> None:
    while data := await end.read():
        await end.write(data)


def descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what nobody announces; the test's own time-out bounds it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
