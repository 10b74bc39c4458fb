"""The shim protocol's messages and framing (docs/shim-protocol.md); both ends use it.

A `Connection` is one end of a unix stream socket. Sizes are checked before memory is taken, and
descriptors that a message does not announce end the connection: the peer is not trusted blindly.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hostlib.errors import Internal, InvalidArgument, PermissionDenied, ThawError, Unavailable

VERSIONS: Final = (1,)
"""The protocol versions that this Thaw speaks."""

MAX_HEADER: Final = 8 * 1024 * 1024
MAX_BODY: Final = 40 * 1024 * 1024
MAX_FDS: Final = 128
"""Descriptors with one message; the kernel's own limit is 253."""

_PREFIX: Final = struct.Struct("<II")
_CHUNK: Final = 256 * 1024
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)

Wire = dict[str, Any]
"""A JSON object."""


class ProtocolError(Internal):
    """The peer broke the protocol; the connection is over."""


class Closed(Unavailable):
    """The connection is over."""


class NotSent(Closed):
    """The connection was over before anything of the message was sent: it can be sent again."""


@dataclass(frozen=True)
class Message:
    """One message. Whoever takes it owns its descriptors; `close` drops them."""

    header: Wire
    body: bytes = b""
    fds: tuple[int, ...] = ()

    def close(self) -> None:
        """Close the message's descriptors."""
        close_all(self.fds)


@dataclass
class _Partial:
    """A message on its way in."""

    data: bytearray = field(default_factory=bytearray)
    fds: list[int] = field(default_factory=list)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors; those closed already are passed over."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def encode(header: Wire, body: bytes = b"", fd_count: int = 0) -> bytes:
    """Prefix and header as they go over the wire; the body follows them.

    Raises `InvalidArgument` when the message would be larger than a receiver accepts.
    """
    if fd_count:
        header = {**header, "fds": fd_count}
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER or len(body) > MAX_BODY or fd_count > MAX_FDS:
        raise InvalidArgument(
            f"message too large: header {len(text)} bytes, body {len(body)} bytes, {fd_count} fds"
        )
    return _PREFIX.pack(len(text), len(body)) + text


def decode_prefix(data: bytes) -> tuple[int, int]:
    """Lengths of header and body. Raises `ProtocolError` when they are beyond the limits."""
    header, body = _PREFIX.unpack(data)
    if header > MAX_HEADER or body > MAX_BODY:
        raise ProtocolError(f"peer announces {header} + {body} bytes, more than allowed")
    return header, body


def decode_header(data: bytes, fds: Sequence[int]) -> Wire:
    """The header; raises `ProtocolError` when it is no object or `fds` are not those it names."""
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("peer sent a header that is no JSON") from error
    if not isinstance(header, dict):
        raise ProtocolError("peer sent a header that is no object")
    if header.pop("fds", 0) != len(fds):
        raise ProtocolError(f"peer sent {len(fds)} descriptors, not the number it announced")
    return header


def received_fds(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what recvmsg(2) returned."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Ancillary data for sendmsg(2) that passes `fds`."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []


def check_peer(sock: socket.socket) -> None:
    """Raises `PermissionDenied` unless the peer runs as root or as this process's own user."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    if uid not in (0, os.geteuid()):
        raise PermissionDenied(f"a process of user {uid} may not talk to a shim")


def request(number: int, method: str, params: Wire) -> Wire:
    """A request's header."""
    return {"id": number, "method": method, "params": params}


def failure(number: int, error: BaseException) -> Wire:
    """The header that answers request `number` with an error."""
    if not isinstance(error, ThawError):
        error = Internal(f"{type(error).__name__}: {error}")
    return {"id": number, "error": error.to_dict()}


class Connection:
    """One end of a connection, over a raw socket, since asyncio's streams drop descriptors.

    One task may receive; any may send. `close` is idempotent and fails what waits with `Closed`.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._send_lock = asyncio.Lock()
        self._waiters: set[asyncio.Future[None]] = set()
        self._closed = False

    @property
    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End the connection."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(Closed("connection closed"))

    async def _readable(self) -> None:
        future = self._loop.create_future()
        self._loop.add_reader(self._sock, _wake, future)
        try:
            await self._wait(future)
        finally:
            if not self._closed:
                self._loop.remove_reader(self._sock)

    async def _writable(self) -> None:
        future = self._loop.create_future()
        self._loop.add_writer(self._sock, _wake, future)
        try:
            await self._wait(future)
        finally:
            if not self._closed:
                self._loop.remove_writer(self._sock)

    async def _wait(self, future: asyncio.Future[None]) -> None:
        self._waiters.add(future)
        try:
            await future
        finally:
            self._waiters.discard(future)

    async def send(self, header: Wire, body: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send one message whole; the caller keeps its descriptors.

        A caller that is cancelled in the middle of a message ends the connection, since the peer
        could not find the next one. Raises `Closed`, and `InvalidArgument` when it is too large.
        """
        data = encode(header, body, len(fds))
        async with self._send_lock:
            if self._closed:
                raise NotSent("connection closed")
            begun = False
            try:
                for part in (data, body):
                    view = memoryview(part)
                    while view:
                        try:
                            sent = self._sock.sendmsg([view[:_CHUNK]], [] if begun else rights(fds))
                        except (BlockingIOError, InterruptedError):
                            await self._writable()
                            continue
                        begun = True
                        view = view[sent:]
            except OSError as error:
                self.close()
                kind = Closed if begun else NotSent
                raise kind(f"connection closed: {error.strerror}") from error
            except asyncio.CancelledError:
                if begun:
                    self.close()
                raise

    async def receive(self) -> Message | None:
        """The next message; None at the end of the stream. Raises `ProtocolError`, `Closed`.

        Cancelling it ends the connection when a part of a message has come.
        """
        partial = _Partial()
        try:
            if not await self._fill(partial, _PREFIX.size, start=True):
                return None
            header_length, body_length = decode_prefix(bytes(partial.data))
            partial.data.clear()
            await self._fill(partial, header_length)
            header = decode_header(bytes(partial.data), partial.fds)
            announced = len(partial.fds)
            partial.data.clear()
            await self._fill(partial, body_length)
            if len(partial.fds) != announced:
                raise ProtocolError("peer sent descriptors within a message")
            return Message(header, bytes(partial.data), tuple(partial.fds))
        except BaseException as error:
            close_all(partial.fds)
            if partial.data or partial.fds or not isinstance(error, asyncio.CancelledError):
                self.close()
            raise

    async def _fill(self, partial: _Partial, size: int, *, start: bool = False) -> bool:
        """Read until `size` bytes are there; False when the stream ends before the first."""
        while len(partial.data) < size:
            if self._closed:
                raise Closed("connection closed")
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    min(_CHUNK, size - len(partial.data)), _ANCILLARY, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                await self._readable()
                continue
            except OSError as error:
                raise Closed(f"connection closed: {error.strerror}") from error
            partial.fds += received_fds(ancillary)
            if flags & socket.MSG_CTRUNC or len(partial.fds) > MAX_FDS:
                raise ProtocolError("peer sent more descriptors than allowed")
            if not data:
                if start and not partial.data:
                    return False
                raise Closed("connection closed within a message")
            partial.data += data
        return True


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def send_blocking(
    sock: socket.socket, header: Wire, body: bytes = b"", fds: Sequence[int] = ()
) -> None:
    """`Connection.send` for a process without an event loop, over a blocking socket."""
    data = encode(header, body, len(fds)) + body
    sent = sock.sendmsg([data], rights(fds))
    if sent < len(data):
        sock.sendall(data[sent:])


def receive_blocking(sock: socket.socket) -> Message | None:
    """`Connection.receive` for a process without an event loop, over a blocking socket."""
    fds: list[int] = []

    def take(size: int, *, start: bool = False) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            part, ancillary, flags, _ = sock.recvmsg(
                min(_CHUNK, size - len(data)), _ANCILLARY, socket.MSG_CMSG_CLOEXEC
            )
            fds.extend(received_fds(ancillary))
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError("peer sent more descriptors than allowed")
            if not part:
                if start and not data:
                    return None
                raise Closed("connection closed within a message")
            data += part
        return bytes(data)

    try:
        prefix = take(_PREFIX.size, start=True)
        if prefix is None:
            return None
        header_length, body_length = decode_prefix(prefix)
        header = decode_header(take(header_length) or b"", fds)
        return Message(header, take(body_length) or b"", tuple(fds))
    except BaseException:
        close_all(fds)
        raise
