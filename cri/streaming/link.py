"""A client's connection, plain or TLS: bytes out with a brake, bytes in with another."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from cri.streaming.streams import PIECE

HIGH_WATER: Final = PIECE
"""Unsent bytes beyond which streams send no more."""
MAX_UNSENT: Final = 4 * PIECE
"""Unsent bytes beyond which nothing is read either: what a client may make us answer."""

_ESTABLISHED: Final = 1
"""TCP_ESTABLISHED (linux/tcp_states.h)."""

MOST_READ: Final = 64 * 1024
LEAST_READ: Final = 4 * 1024
SLOW: Final = 0.005
"""Seconds. What a client sends in tiny frames takes long to handle: less of it is read at a time,
so that the event loop serves others in between."""

# One buffer for all: `receive` is done with it before anything else is read.
_BUFFER: Final = memoryview(bytearray(MOST_READ))


class Link(asyncio.BufferedProtocol):
    """`receive` gets what the client sends; it may be replaced at any time, and must not raise.
    It is to be set before `connect`: a client's first bytes come with the last of TLS' handshake.

    `gone` is done when the connection is over, whoever ended it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.receive: Callable[[memoryview], None] = lambda _: None
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.writable = True
        """Whether streams may send; see `when_writable`."""
        self.last_active = self._loop.time()
        self._waiting: deque[Callable[[], None]] = deque()
        self._held = False
        self.reading = True
        """Whether what the client sends is read."""
        self._read_size = 4 * LEAST_READ

    # --- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(HIGH_WATER)
        # A client whose machine is gone is noticed within three minutes.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return _BUFFER[: self._read_size]

    def buffer_updated(self, nbytes: int) -> None:
        self.last_active = self._loop.time()
        self.receive(_BUFFER[:nbytes])
        if self._loop.time() - self.last_active > SLOW:
            self._read_size = max(self._read_size // 4, LEAST_READ)
        elif nbytes == self._read_size:
            self._read_size = min(self._read_size * 2, MOST_READ)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.last_active = self._loop.time()
        self._settle_reading()
        # Those that are called may fill the buffer again; the others wait on, and come first.
        while self._waiting and self.writable:
            self._waiting.popleft()()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.writable = False
        self._waiting.clear()
        if not self.gone.done():
            self.gone.set_result(None)

    # --- what sessions call

    @property
    def connected(self) -> bool:
        """Whether the socket is the link's own."""
        return self._transport is not None

    @property
    def socket(self) -> socket.socket:
        """The TCP connection, for its options; only of a link that is connected."""
        assert self._transport is not None
        return cast("socket.socket", self._transport.get_extra_info("socket"))

    @property
    def unsent(self) -> int:
        """Bytes that wait for the client."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Queues bytes; dropped when the connection is over."""
        transport = self._transport
        if transport is None or transport.is_closing() or not data:
            return
        self.last_active = self._loop.time()
        transport.write(data)
        if not self.writable:
            self._settle_reading()

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Calls `wake` once, when `writable` is true again."""
        self._waiting.append(wake)

    def hold(self, held: bool) -> None:
        """Whether to leave what the client sends unread: its brake."""
        if held != self._held:
            self._held = held
            self._settle_reading()

    def _settle_reading(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        wanted = not self._held and self.unsent <= MAX_UNSENT
        if wanted != self.reading:
            self.reading = wanted
            if wanted:
                transport.resume_reading()
            else:
                transport.pause_reading()

    async def drained(self) -> None:
        """When all that was written has left for the client, or the connection is over."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.set_write_buffer_limits(0)
        if not self.writable:
            empty = self._loop.create_future()
            self.when_writable(lambda: None if empty.done() else empty.set_result(None))
            await asyncio.wait([empty, self.gone], return_when=asyncio.FIRST_COMPLETED)

    async def close(self, linger: float) -> None:
        """Ends our side, and waits up to `linger` seconds for the client to end its own.

        What it still sends is dropped meanwhile: to close with bytes unread is to reset, which may
        take what was sent last from the client's hands.
        """
        self.receive = lambda _: None
        self.hold(False)
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if transport.can_write_eof():
                transport.write_eof()
                await asyncio.wait([self.gone], timeout=linger)
            transport.close()
        await asyncio.wait([self.gone], timeout=linger)
        self.abort()

    def abort(self) -> None:
        """Ends the connection now."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def left_unread(self) -> bool:
        """Whether the client has ended a connection that is not read, so that nothing tells."""
        if self.reading or self._transport is None or self.gone.done():
            return False
        try:
            state: bytes = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        except OSError:
            return True
        return state[0] != _ESTABLISHED


async def connect(
    link: Link, sock: socket.socket, context: ssl.SSLContext | None, handshake: float
) -> None:
    """Gives a link its socket, which was accepted and is closed with it, or when this fails.

    Raises `OSError` (`ssl.SSLError` among them) when TLS, where `context` is given, does not stand
    within `handshake` seconds.
    """
    loop = asyncio.get_running_loop()
    options = {} if context is None else {"ssl_handshake_timeout": handshake}
    try:
        await loop.connect_accepted_socket(lambda: link, sock, ssl=context, **options)
    except BaseException:
        sock.close()
        raise
