"""A client of streaming servers: from the one-shot URL of Exec, Attach or PortForward to streams.

The transport is SPDY/3.1, by the same core as the server's, with windows: a stream that is not read
stops alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

import h11

from cri.streaming.negotiation import PROTOCOL_HEADER, SPDY_UPGRADE
from cri.streaming.spdy.connection import Connection
from cri.streaming.spdy.errors import StreamClosed
from cri.streaming.spdy.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    PingAnswered,
    StreamEnded,
    StreamReplied,
    StreamReset,
    WindowOpened,
)
from cri.streaming.spdy.limits import Limits
from hostlib import errors

CONNECT_TIMEOUT: Final = 30.0
"""Seconds until the protocol is agreed."""
CHUNK: Final = 64 * 1024
MAX_REFUSAL: Final = 8 * 1024
"""Bytes of a refusal's text that are read."""

_WINDOW: Final = 128 * 1024
_STREAMS: Final = 1024

LIMITS: Final = Limits(
    stream_window=_WINDOW,
    # So many connections are forwarded at once by one shim, and none may hold up another.
    session_window=_WINDOW * _STREAMS,
    unacknowledged=_WINDOW * _STREAMS,
)


class Lost(errors.Unavailable):
    """The connection ended before the streams did."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the connection to the streaming server was lost: {reason}",
            hint="pods and containers go on without thawd; a command does until it reads or writes",
        )


@dataclass(frozen=True)
class Tls:
    """What the https form of a URL is verified with, and answered with; files of PEM."""

    authority: str = ""
    """Who signed the server's certificate; empty: an authority that this host trusts."""
    certificate: str = ""
    key: str = ""

    def context(self) -> ssl.SSLContext:
        """Raises `InvalidArgument`."""
        named = ", ".join(filter(None, (self.authority, self.certificate, self.key)))
        try:
            context = ssl.create_default_context(cafile=self.authority or None)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key or None)
        except (OSError, ValueError) as error:
            raise errors.InvalidArgument(
                f"{named} cannot be used for TLS: {error}",
                hint="--streaming-ca, --streaming-cert and --streaming-key name files of PEM",
            ) from error
        return context


class Stream:
    """One stream of a connection. Both directions end by themselves."""

    def __init__(self, wire: Wire, stream_id: int) -> None:
        self._wire = wire
        self.id = stream_id
        self._received = bytearray()
        self._accepted = False
        self._ended = False
        self.reset_by_peer = False
        self._waiting: list[asyncio.Future[None]] = []

    def handle(self, event: Event) -> None:
        match event:
            case DataReceived(_, data):
                self._received += data
            case StreamReplied():
                self._accepted = True
            case StreamEnded():
                self._ended = True
            case StreamReset():
                self._ended = self.reset_by_peer = True
        self.wake()

    def wake(self) -> None:
        """Lets those look again who wait for something of the stream or the connection."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _news(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    async def accepted(self) -> None:
        """Returns when the server has accepted the stream, or reset it. Raises `Lost`."""
        while not self._accepted and not self._ended:
            self._wire.check()
            await self._news()

    async def read(self) -> bytes:
        """What has come; empty at the end of the stream. Raises `Lost`."""
        while not self._received:
            if self._ended:
                return b""
            self._wire.check()
            await self._news()
        data = bytes(self._received)
        self._received.clear()
        self._wire.acknowledge(self.id, len(data))
        return data

    async def read_all(self, most: int) -> bytes:
        """All until the end of the stream; what is beyond `most` bytes is dropped."""
        found = bytearray()
        while data := await self.read():
            found += data[: most - len(found)]
        return bytes(found)

    async def send(self, data: bytes) -> None:
        """Sends all, as fast as the server takes it. Raises `StreamClosed`, `Lost`."""
        view = memoryview(data)
        while view:
            self._wire.check()
            taken = self._wire.connection.send_data(self.id, view)
            view = view[taken:]
            await self._wire.sent()
            if not taken:
                await self._news()

    def end(self) -> None:
        """Nothing more will be sent."""
        with contextlib.suppress(StreamClosed):
            self._wire.connection.send_data(self.id, b"", fin=True)
        self._wire.flush()

    def reset(self) -> None:
        """Ends both directions; what has come and was not read is dropped. Idempotent."""
        self._wire.connection.reset(self.id)
        self._wire.forget(self.id)
        self._ended = True
        self._received.clear()
        self.wake()


class Wire:
    """A connection that has switched to SPDY."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection = Connection(client=True, limits=LIMITS)
        self._reader, self._writer = reader, writer
        self._streams: dict[int, Stream] = {}
        self._lost = ""
        self._room = asyncio.Event()
        self._pings: dict[int, asyncio.Future[None]] = {}
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection has ended."""

    def check(self) -> None:
        """Raises `Lost` when the connection has ended."""
        if self._lost:
            raise Lost(self._lost)

    def open(self, headers: Mapping[str, str], *, fin: bool = False) -> Stream:
        """Opens a stream, to which nothing may be sent until it is accepted; with `fin` nothing
        ever is. Raises `Lost`, `ResourceExhausted`."""
        self.check()
        stream = Stream(self, self.connection.open_stream(headers, fin=fin))
        self._streams[stream.id] = stream
        self.flush()
        return stream

    def forget(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        self.flush()

    async def round_trip(self) -> None:
        """Returns when the server has read all that was sent, and answered. Raises `Lost`."""
        self.check()
        ping = self.connection.ping()
        answered = self._pings[ping] = asyncio.get_running_loop().create_future()
        self.flush()
        await asyncio.wait([answered, self.over], return_when=asyncio.FIRST_COMPLETED)
        self.check()

    def flush(self) -> None:
        if queued := self.connection.data_to_send():
            self._writer.writelines(queued)
        if not self.connection.read_paused:
            self._room.set()

    async def sent(self) -> None:
        """Returns when there is room for more. Raises `Lost`."""
        self.flush()
        try:
            await self._writer.drain()
        except OSError as error:
            self._lose(str(error))
            self.check()

    def acknowledge(self, stream_id: int, count: int) -> None:
        self.connection.acknowledge(stream_id, count)
        self.flush()

    async def run(self, early: bytes) -> None:
        """Reads until the connection ends, beginning with `early`."""
        reason = "the server ended it"
        try:
            data = early
            while True:
                for event in self.connection.receive_data(data):
                    self._handle(event)
                self.flush()
                while self.connection.read_paused:
                    self._room.clear()
                    await self._room.wait()
                data = await self._reader.read(CHUNK)
                if not data:
                    break
        except OSError as error:
            reason = str(error)
        finally:
            self._lose(reason)

    def _handle(self, event: Event) -> None:
        match event:
            case WindowOpened(0):
                for stream in self._streams.values():
                    stream.wake()
            case ConnectionFailed(_, message):
                self._lose(f"the server broke the protocol: {message}")
            case PingAnswered(ping):
                self._pings.pop(ping).set_result(None)
            case (
                DataReceived(stream_id)
                | StreamReplied(stream_id)
                | StreamEnded(stream_id)
                | StreamReset(stream_id)
                | WindowOpened(stream_id)
            ):
                if found := self._streams.get(stream_id):
                    found.handle(event)
            case _:
                pass

    def _lose(self, reason: str) -> None:
        self._lost = self._lost or reason
        if not self.over.done():
            self.over.set_result(None)
        for stream in self._streams.values():
            stream.wake()


@contextlib.asynccontextmanager
async def connect(url: str, protocol: str, tls: Tls) -> AsyncIterator[Wire]:
    """The connection behind a URL, in which `protocol` was agreed on.

    Raises `Unavailable` when there is no such server, `FailedPrecondition` when TLS fails, what
    the server refuses with, and `InvalidArgument`.
    """
    parts = urlsplit(url)
    context = tls.context() if parts.scheme == "https" else None
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            reader, writer, early = await _upgraded(parts, protocol, context)
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        raise errors.FailedPrecondition(
            f"no TLS with the streaming server at {parts.netloc}: {reason}",
            hint="--streaming-ca names its authority; --streaming-cert and --streaming-key are "
            "what it may ask for",
        ) from error
    except (OSError, TimeoutError) as error:
        raise errors.Unavailable(
            f"the streaming server at {parts.netloc} does not answer: {error or 'time-out'}",
            # In TLS 1.3 a server that misses a certificate just ends the connection.
            hint="it may ask for a certificate: --streaming-cert, --streaming-key"
            if context and not tls.certificate
            else "streaming.address in thawd's configuration must be an address of this host",
        ) from error
    wire = Wire(reader, writer)
    # Before the first stream, or the server reads as fast as it likes.
    wire.connection.announce_windows()
    task = asyncio.create_task(wire.run(early), name="streaming connection")
    try:
        yield wire
    finally:
        task.cancel()
        await asyncio.wait([task])
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()


async def _upgraded(
    parts: SplitResult, protocol: str, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    try:
        http = h11.Connection(h11.CLIENT)
        head = h11.Request(
            method="POST",
            target=f"{parts.path}?{parts.query}" if parts.query else parts.path,
            headers=[
                ("Host", parts.netloc),
                ("Connection", "Upgrade"),
                ("Upgrade", SPDY_UPGRADE),
                (PROTOCOL_HEADER, protocol),
                ("Content-Length", "0"),
            ],
        )
        for part in (head, h11.EndOfMessage()):
            writer.write(http.send(part) or b"")
        return reader, writer, await _answer(http, reader, protocol)
    except BaseException:
        writer.close()
        raise


async def _answer(http: h11.Connection, reader: asyncio.StreamReader, protocol: str) -> bytes:
    """Reads the head of the answer, and gives what has come behind it already."""
    status, text = 0, bytearray()
    try:
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(CHUNK)
                if not data and not status:
                    raise ConnectionResetError("it ended the connection")
                http.receive_data(data)
            elif isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                agreed = dict(event.headers).get(PROTOCOL_HEADER.lower().encode(), b"").decode()
                if agreed != protocol:
                    raise errors.Unimplemented(f"the streaming server does not speak {protocol}")
                return http.trailing_data[0]
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                text += event.data[: MAX_REFUSAL - len(text)]
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.RemoteProtocolError as error:
        if not status:
            raise errors.Unavailable(f"this is no streaming server: {error}") from error
    refused = f"the streaming server refused: {status} {text.decode(errors='replace').strip()}"
    if status == 404:
        raise errors.NotFound(refused, hint="a URL serves once, within a minute: try again")
    raise (errors.Unavailable if status >= 500 else errors.FailedPrecondition)(refused)
