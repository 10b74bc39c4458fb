"""Bytes between a guest's streams and sockets of the daemon's, each direction for itself.

The daemon keeps one end of a pair of unix sockets, the shim has the other. A side says that no more
will come by shutting its writing direction down.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from hostlib.errors import InvalidArgument, ThawError
from shim.streams import Readable

PIECE: Final = 64 * 1024
"""Bytes that are read from a socket at a time; a frame to the guest holds as many."""


def own(descriptor: int) -> socket.socket:
    """A duplicate of a descriptor that came with a request. Raises `InvalidArgument`."""
    copy = os.dup(descriptor)
    try:
        sock = socket.socket(fileno=copy)
    except OSError as error:
        os.close(copy)
        raise InvalidArgument(f"a descriptor that is no socket: {error.strerror}") from error
    sock.setblocking(False)
    return sock


class Hangups:
    """Tells when the far end of a socket was closed, not only shut down in one direction.

    An event loop's selectors report both as readable; epoll without any event asked for reports
    the first alone.
    """

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        asyncio.get_running_loop().add_reader(self._poll.fileno(), self._ready)

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> None:
        """Call `callback` once when the far end is closed; `forget` comes before `sock.close`."""
        self._poll.register(sock.fileno(), 0)
        self._watched[sock.fileno()] = callback

    def forget(self, sock: socket.socket) -> None:
        """Stop watching. Idempotent."""
        if self._watched.pop(sock.fileno(), None) is not None:
            self._poll.unregister(sock.fileno())

    def _ready(self) -> None:
        for descriptor, _ in self._poll.poll(0):
            self._poll.unregister(descriptor)
            self._watched.pop(descriptor)()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._poll.fileno())
        self._poll.close()
        self._watched.clear()


def break_off(stream: Any) -> None:
    """End a stream in both directions, whatever its state."""
    with contextlib.suppress(ThawError):
        stream.reset()


class Outward:
    """Copies what the guest sends to a socket, and its end. A far end that does not read stops this
    stream alone; one that is closed breaks it off as soon as there is something to write."""

    def __init__(self, stream: Readable, sock: socket.socket) -> None:
        self._stream = stream
        self._sock = sock
        self.waits_since: float | None = None
        """The loop's time since which the guest has sent nothing; None while the far end is to
        take what came."""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                self.waits_since = loop.time()
                data = await self._stream.read()
                self.waits_since = None
                if not data:
                    return
                await loop.sock_sendall(self._sock, data)
        except OSError:
            # Nobody reads any more.
            pass
        except ThawError:
            # The guest broke it off, or the VM has ended.
            pass
        finally:
            break_off(self._stream)
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)


async def drain(pumps: Mapping[asyncio.Task[None], Outward], seconds: float) -> None:
    """Wait until the copying has ended. One for which the guest sends nothing for so many seconds
    from now on is cancelled; one whose far end is slow has all the time it needs."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    left = set(pumps)
    while left:
        _, left = await asyncio.wait(left, timeout=seconds)
        for task in left:
            since = pumps[task].waits_since
            if since is not None and loop.time() - max(since, begun) >= seconds:
                task.cancel()


async def inward(sock: socket.socket, stream: Any) -> None:
    """Copy what comes from `sock` into the guest, and its end; returns when the guest has taken
    all of it, or wants no more: then the far end can write no more either."""
    copying = asyncio.create_task(_copy(sock, stream))
    # Nothing comes on this stream but its end.
    ended = asyncio.create_task(_end(stream))
    try:
        await asyncio.wait((copying, ended), return_when=asyncio.FIRST_COMPLETED)
        await ended
    finally:
        for task in (copying, ended):
            task.cancel()
        await asyncio.wait((copying, ended))
        break_off(stream)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RD)


async def _copy(sock: socket.socket, stream: Any) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ThawError):
        with contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(sock, PIECE):
                await stream.write(data)
        stream.close_write()


async def _end(stream: Readable) -> None:
    with contextlib.suppress(ThawError):
        while await stream.read():
            pass
