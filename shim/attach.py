"""Those who follow a container's output as it comes, and write to its input.

Its log and its speed do not depend on them: one that does not read is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, Final, cast

from hostlib.errors import ResourceExhausted, ThawError
from shim.log import StreamName
from shim.relay import PIECE

log = logging.getLogger(__name__)

MAX_UNREAD: Final = 4 * 1024 * 1024
"""Bytes that wait for one follower before it is dropped."""

MAX_FOLLOWERS: Final = 64
"""Sockets that follow one container."""


class _Follower(asyncio.Protocol):
    """Takes one output stream; what it sends itself is ignored."""

    def __init__(self, audience: Audience, name: StreamName, client: Client) -> None:
        self._audience = audience
        self._name = name
        self.client = client
        client.append(self)
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=MAX_UNREAD)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._audience.left(self._name, self)


Client = list[_Follower]
"""The followers of one client: a list that is empty at first."""


class Audience:
    """The followers of one container."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._followers: dict[StreamName, set[_Follower]] = {"stdout": set(), "stderr": set()}
        self._writers: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    async def follow(self, name: StreamName, sock: socket.socket, client: Client) -> None:
        """Send to `sock`, which is ours from now on, what the stream says from now on.

        A client that does not read one of its streams loses all: half of an output is none. Raises
        `ResourceExhausted`.
        """
        if sum(map(len, self._followers.values())) >= MAX_FOLLOWERS:
            sock.close()
            raise ResourceExhausted(f"{MAX_FOLLOWERS} streams are attached to {self._what}")
        _, follower = await asyncio.get_running_loop().create_connection(
            lambda: _Follower(self, name, client), sock=sock
        )
        self._followers[name].add(follower)

    def left(self, name: StreamName, follower: _Follower) -> None:
        self._followers[name].discard(follower)

    def tell(self, name: StreamName, data: bytes) -> None:
        """The container said `data`."""
        for follower in tuple(self._followers[name]):
            transport = follower.transport
            if transport is None or transport.is_closing():
                continue
            transport.write(data)
            if transport.get_write_buffer_size() > MAX_UNREAD:
                log.warning("who is attached to %s of %s does not read", name, self._what)
                for each in follower.client:
                    if each.transport is not None:
                        each.transport.abort()

    def finish(self, name: StreamName) -> None:
        """The stream has ended: so it does for all, when they have read the rest."""
        for follower in tuple(self._followers[name]):
            if follower.transport is not None:
                follower.transport.close()

    async def write(self, sock: socket.socket, stream: Any, client: Client, *, once: bool) -> None:
        """Copy what comes from `sock`, which is ours from now on, to the container's input until
        one of them ends.

        With `once` the end of the first that ends is the input's. Without it, a client whose input
        has ended is done: its output ends too, as containerd has it. Several may write; each piece
        arrives whole. Raises `ResourceExhausted`.
        """
        if len(self._writers) >= MAX_FOLLOWERS:
            sock.close()
            raise ResourceExhausted(f"{MAX_FOLLOWERS} inputs are attached to {self._what}")
        copying = self._copy(sock, stream, client, once)
        task = asyncio.create_task(copying, name=f"stdin of {self._what}")
        self._writers.add(task)
        task.add_done_callback(self._writers.discard)

    async def _copy(self, sock: socket.socket, stream: Any, client: Client, once: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(sock, PIECE):
                async with self._turn:
                    await stream.write(data)
            if once:
                stream.close_write()
            else:
                for each in client:
                    if each.transport is not None:
                        each.transport.close()
        except (ThawError, OSError) as error:
            log.debug("stdin of %s: %s", self._what, error)
        finally:
            sock.close()

    async def hush(self) -> None:
        """The container has ended: nobody writes any more, and all are told of the end."""
        writers = list(self._writers)
        for task in writers:
            task.cancel()
        if writers:
            await asyncio.wait(writers)
        for name in self._followers:
            self.finish(name)

    async def close(self) -> None:
        """Let everybody go, read or not."""
        await self.hush()
        for followers in self._followers.values():
            for follower in tuple(followers):
                if follower.transport is not None:
                    follower.transport.abort()
