"""A SPDY client for tests, over TCP, TLS, or anything that carries bytes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from cri.streaming.spdy import events
from cri.streaming.spdy.connection import Connection
from cri.streaming.spdy.errors import StreamClosed
from cri.streaming.spdy.limits import Limits


class Rejected(Exception):
    def __init__(self, status: int, head: str, body: str) -> None:
        super().__init__(f"{status} {body}")
        self.status, self.head, self.body = status, head, body


@dataclass(eq=False)
class Received:
    """What came on a stream."""

    data: bytearray = field(default_factory=bytearray)
    replied: bool = False
    ended: bool = False
    reset: bool = False


class SpdyClient:
    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limits: Limits | None = None,
    ) -> None:
        self.connection = Connection(client=True, limits=limits)
        self.acknowledging = True
        self.reader, self.writer = reader, writer
        self.streams: dict[int, Received] = {}
        self.heard: list[events.Event] = []
        self.closed = False
        self.protocol = ""
        self._changed = asyncio.Condition()
        self.reading = asyncio.Event()
        self.reading.set()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                await self.reading.wait()
                data = await self.reader.read(65536)
                if not data:
                    break
                self.take(data)
                async with self._changed:
                    self._changed.notify_all()
        self.closed = True
        async with self._changed:
            self._changed.notify_all()

    def take(self, data: bytes) -> None:
        for event in self.connection.receive_data(data):
            self.heard.append(event)
            match event:
                case events.DataReceived(stream_id, piece):
                    self.streams[stream_id].data += piece
                    if self.acknowledging:
                        self.connection.acknowledge(stream_id, len(piece))
                case events.StreamReplied(stream_id):
                    self.streams[stream_id].replied = True
                case events.StreamEnded(stream_id):
                    self.streams[stream_id].ended = True
                case events.StreamReset(stream_id):
                    self.streams[stream_id].reset = True
        self.flush()

    def flush(self) -> None:
        if queued := self.connection.data_to_send():
            self.writer.write(b"".join(queued))

    async def until(self, condition: object) -> None:
        """Waits until the callable is true. Fails the test if the connection ends before."""
        assert callable(condition)
        async with self._changed:
            await self._changed.wait_for(lambda: condition() or self.closed)
        assert condition(), "the server closed the connection"

    async def open(self, **headers: str) -> int:
        """Opens a stream and waits for the reply, or the reset."""
        stream_id = self.connection.open_stream(headers)
        found = self.streams[stream_id] = Received()
        self.flush()
        await self.until(lambda: found.replied or found.reset)
        return stream_id

    async def send(self, stream_id: int, data: bytes = b"", *, fin: bool = False) -> None:
        """Sends all, as fast as it is taken."""
        with contextlib.suppress(StreamClosed, OSError):
            view = memoryview(data)
            while True:
                taken = self.connection.send_data(
                    stream_id, view[:65536], fin=fin and len(view) <= 65536
                )
                self.flush()
                await self.writer.drain()
                view = view[taken:]
                if not view:
                    return
                if not taken:
                    async with self._changed:
                        await self._changed.wait()

    async def command(self, *names: str) -> dict[str, int]:
        """Opens the streams of an exec or attach."""
        return {name: await self.open(streamtype=name) for name in ("error", *names)}

    async def finished(self, stream_id: int) -> bytes:
        """What came on a stream, once it has ended."""
        found = self.streams[stream_id]
        await self.until(lambda: found.ended or found.reset)
        return bytes(found.data)

    async def until_closed(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.closed)

    async def close(self) -> None:
        self.writer.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def upgrade(url: str, protocols: Sequence[str], *, method: str = "POST") -> bytes:
    parts = urlsplit(url)
    lines = [
        f"{method} {parts.path}{'?' + parts.query if parts.query else ''} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Connection: Upgrade",
        "Upgrade: SPDY/3.1",
        *(f"X-Stream-Protocol-Version: {each}" for each in protocols),
        *(["Content-Length: 0"] if method == "POST" else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextlib.asynccontextmanager
async def spdy(
    url: str,
    *protocols: str,
    method: str = "POST",
    context: ssl.SSLContext | None = None,
    windows: bool = False,
    limits: Limits | None = None,
) -> AsyncIterator[SpdyClient]:
    """Connects and upgrades. Raises `Rejected`."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    client = SpdyClient(reader, writer, limits)
    try:
        writer.write(upgrade(url, protocols or ("v4.channel.k8s.io",), method=method))
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status = int(head.split()[1])
        if status != 101:
            raise Rejected(status, head, (await reader.read()).decode())
        names = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        client.protocol = {key.lower(): value for key, value in names.items()}[
            "x-stream-protocol-version"
        ]
        if windows:
            client.connection.announce_windows()
            client.flush()
        client.begin()
        yield client
    finally:
        await client.close()
