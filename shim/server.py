"""The serving side of the shim protocol: connections, requests, events to all."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hostlib.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, ThawError
from hostlib.tasks import Tasks
from shim import protocol
from shim.protocol import VERSIONS, Connection, Message, Wire

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16
MAX_REQUESTS: Final = 1024
"""Requests under way on one connection; each open exec has one that waits for its end."""

_MAX_EVENTS: Final = 1024


@dataclass(frozen=True)
class Answer:
    """A result; its descriptors stay the handler's."""

    result: Wire = field(default_factory=dict)
    body: bytes = b""
    fds: tuple[int, ...] = ()


Handler = Callable[[Wire, Message], Awaitable[Answer]]


def choose_version(params: object) -> Wire:
    """The answer to `hello`. Raises `FailedPrecondition` when no version is common to both."""
    offered = params.get("protocol") if isinstance(params, dict) else None
    if not isinstance(offered, list):
        raise InvalidArgument("hello names no protocol versions")
    common = [one for one in VERSIONS if one in offered]
    if not common:
        raise FailedPrecondition(
            f"the caller speaks shim protocol {offered!r}, this shim {list(VERSIONS)}",
            hint="the pod was started by another Thaw: stop it with that one",
        )
    return {"protocol": max(common)}


class _Peer:
    """One connection and the events that wait for it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.events: asyncio.Queue[Wire] = asyncio.Queue(maxsize=_MAX_EVENTS)
        self.tasks = Tasks()
        self.greeted = False
        self.sender: asyncio.Task[None] | None = None

    def tell(self, event: Wire) -> None:
        if not self.greeted:
            return
        try:
            self.events.put_nowait(event)
        except asyncio.QueueFull:
            # It has stopped reading; what it missed it learns by `describe` when it connects anew.
            log.warning("a connection does not read its events and is closed")
            self.connection.close()

    async def send_events(self) -> None:
        while True:
            await self.connection.send(await self.events.get())


class Server:
    """Serves `handlers` on a unix socket and on connections given to it."""

    def __init__(
        self, handlers: Mapping[str, Handler], standing: Callable[[], Wire | None]
    ) -> None:
        """`standing` is the event that a peer gets right after its hello, if there is one."""
        self._handlers = handlers
        self._standing = standing
        self._peers: set[_Peer] = set()
        self._tasks = Tasks()
        self._listener: socket.socket | None = None
        self._path: Path | None = None
        self.idle_since: float | None = asyncio.get_running_loop().time()
        """Loop time since which nobody is connected; None while somebody is."""
        self._left = asyncio.Event()
        self._left.set()

    @property
    def told(self) -> bool:
        """Whether every connection was greeted and has no event left to be sent."""
        return all(peer.greeted and peer.events.empty() for peer in self._peers)

    def listen(self, path: Path) -> None:
        """Accept connections at `path`; what a dead process left there goes."""
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.setblocking(False)
        listener.bind(os.fspath(path))
        os.chmod(path, 0o600)
        listener.listen(MAX_CONNECTIONS)
        self._listener, self._path = listener, path
        self._tasks.start(self._accept(listener), "accept")

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("accept: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            try:
                protocol.check_peer(sock)
                if len(self._peers) >= MAX_CONNECTIONS:
                    raise ResourceExhausted(f"{MAX_CONNECTIONS} connections are open")
            except ThawError as error:
                log.warning("connection refused: %s", error)
                sock.close()
                continue
            self.adopt(sock)

    def adopt(self, sock: socket.socket) -> None:
        """Serve a connection that exists."""
        peer = _Peer(Connection(sock))
        self._peers.add(peer)
        self.idle_since = None
        self._left.clear()
        self._tasks.start(self._serve(peer), "connection")

    async def deserted(self, seconds: float) -> None:
        """Wait until nobody has been connected for so long; without waking up while somebody is."""
        loop = asyncio.get_running_loop()
        while True:
            await self._left.wait()
            assert self.idle_since is not None
            if (left := self.idle_since + seconds - loop.time()) <= 0:
                return
            await asyncio.sleep(left)

    def broadcast(self, event: Wire) -> None:
        """Send `event` to every connection."""
        for peer in tuple(self._peers):
            peer.tell(event)

    async def flush(self) -> None:
        """Give events and answers under way a moment to leave."""
        for _ in range(50):
            if all(peer.events.empty() for peer in self._peers):
                break
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """End all connections. Idempotent."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        await self._tasks.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _serve(self, peer: _Peer) -> None:
        try:
            while (message := await peer.connection.receive()) is not None:
                if len(peer.tasks) >= MAX_REQUESTS:
                    message.close()
                    raise ResourceExhausted("too many requests under way")
                peer.tasks.start(self._request(peer, message), "request")
        except ThawError as error:
            log.info("connection ended: %s", error.message)
        finally:
            # A request goes on without the one who asked: what it changes must be whole.
            peer.connection.close()
            if peer.sender is not None:
                peer.sender.cancel()
            self._peers.discard(peer)
            if not self._peers:
                self.idle_since = asyncio.get_running_loop().time()
                self._left.set()

    async def _request(self, peer: _Peer, message: Message) -> None:
        number = message.header.get("id")
        try:
            if not isinstance(number, int):
                peer.connection.close()
                return
            try:
                answer = await self._handle(peer, message)
                header: Wire = {"id": number, "result": answer.result}
            except Exception as error:
                if not isinstance(error, ThawError):
                    log.exception("%s failed", message.header.get("method"))
                else:
                    log.info("%s: %s", message.header.get("method"), error)
                header, answer = protocol.failure(number, error), Answer()
            try:
                await peer.connection.send(header, answer.body, answer.fds)
            except protocol.Closed:
                return
            if message.header.get("method") == "hello" and "result" in header:
                self._greet(peer)
        finally:
            message.close()

    def _greet(self, peer: _Peer) -> None:
        if peer.greeted:
            return
        peer.greeted = True
        peer.sender = self._tasks.start(_quietly(peer.send_events()), "events")
        if (event := self._standing()) is not None:
            peer.tell(event)

    async def _handle(self, peer: _Peer, message: Message) -> Answer:
        method, params = message.header.get("method"), message.header.get("params")
        if not isinstance(params, dict):
            raise InvalidArgument("params is no object")
        if method == "hello":
            return Answer(choose_version(params))
        if not peer.greeted:
            raise FailedPrecondition("the first request must be hello")
        handler = self._handlers.get(str(method))
        if handler is None:
            raise InvalidArgument(f"a shim has no method {method!r}")
        return await handler(params, message)


async def _quietly(work: Awaitable[None]) -> None:
    try:
        await work
    except protocol.Closed:
        return
