"""SPDY's streams as `ClientStream`s, over whatever carries the bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from cri.streaming.link import Link
from cri.streaming.spdy.connection import Connection
from cri.streaming.spdy.errors import StreamClosed
from cri.streaming.spdy.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    StreamEnded,
    StreamOpened,
    StreamReset,
    WindowOpened,
)
from cri.streaming.spdy.frames import ResetStatus
from cri.streaming.spdy.limits import Limits
from cri.streaming.streams import PIECE, Bytes, ClientStream

# Two for each forwarded connection, of which a shim has 1,024 at most.
LIMITS: Final = Limits(streams=2048)

Opened = Callable[["SpdyStream", Mapping[str, str]], None]


class SpdyStream(ClientStream):
    """A stream that the client opened."""

    def __init__(self, wire: SpdyWire, stream_id: int) -> None:
        super().__init__()
        self._wire = wire
        self.id = stream_id
        # What a window did not take; pumps never send more than there is room for, statuses do.
        self._rest = b""
        self._ending = False
        self._ended = False
        self._remote_ended = False

    def accept(self) -> None:
        """Replies; nothing may be sent before."""
        with contextlib.suppress(StreamClosed):
            self._wire.connection.reply(self.id)
        self._wire.flush()

    def reset(self, status: ResetStatus = ResetStatus.CANCEL) -> None:
        """Ends the stream both ways; what was not sent yet is dropped."""
        self._wire.connection.reset(self.id, status)
        self._wire.flush()
        self._drop_rest()
        self._wire.forget(self)

    def room(self) -> int:
        if not self._wire.link.writable:
            return 0
        return min(self._wire.connection.sendable(self.id), PIECE)

    def send(self, data: Bytes) -> None:
        try:
            taken = self._wire.connection.send_data(self.id, data)
        except StreamClosed:
            return
        # At once: what is queued refers to the data.
        self._wire.flush()
        if taken < len(data):
            self._rest = bytes(memoryview(data)[taken:])
            self._wire.unsettled.add(self.id)
            self._wire.when_window(self.id, self._go_on)

    def _go_on(self) -> None:
        rest = self._rest
        self._drop_rest()
        self.send(rest)
        if self._ending and not self._rest:
            self._end()

    def _drop_rest(self) -> None:
        self._rest = b""
        self._wire.settle(self.id)

    def end(self) -> None:
        self._ending = True
        if not self._rest:
            self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(StreamClosed):
            self._wire.connection.send_data(self.id, b"", fin=True)
        self._wire.flush()
        if self._remote_ended:
            self._wire.forget(self)

    def when_room(self, wake: Callable[[], None]) -> None:
        if self._wire.link.writable:
            self._wire.when_window(self.id, wake)
        else:
            self._wire.link.when_writable(wake)

    def taken(self, count: int) -> None:
        self._wire.connection.acknowledge(self.id, count)
        self._wire.flush()

    def deliver_end(self) -> None:
        self._remote_ended = True
        super().deliver_end()
        if self._ended:
            self._wire.forget(self)

    def deliver_break(self) -> None:
        self._drop_rest()
        super().deliver_break()


class SpdyWire:
    """A SPDY connection; `opened` is called for each stream, and accepts or resets it.

    `write` takes the connection's bytes; the brakes of both directions are those of `link`.
    """

    def __init__(self, link: Link, write: Callable[[bytes], None], opened: Opened) -> None:
        self.link = link
        self.connection = Connection(client=False, limits=LIMITS)
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done, with the reason, when the client broke the protocol."""
        self._write = write
        self._opened = opened
        self._streams: dict[int, SpdyStream] = {}
        self._windows: deque[tuple[int, Callable[[], None]]] = deque()
        self.unsettled: set[int] = set()
        """Streams that wait for a window with something that was given to them."""
        self._settled = asyncio.Event()
        self._settled.set()

    def receive(self, data: Bytes) -> None:
        """Takes bytes of the connection."""
        for event in self.connection.receive_data(data):
            self._handle(event)
        self.flush()

    def _handle(self, event: Event) -> None:
        match event:
            case DataReceived(stream_id, data):
                stream = self._streams.get(stream_id)
                if stream is None:
                    self.connection.acknowledge(stream_id, len(data))
                else:
                    stream.deliver(data)
            case StreamOpened(stream_id, headers):
                stream = self._streams[stream_id] = SpdyStream(self, stream_id)
                self._opened(stream, headers)
                if event.ended:
                    stream.deliver_end()
            case StreamEnded(stream_id):
                if (stream := self._streams.get(stream_id)) is not None:
                    stream.deliver_end()
            case StreamReset(stream_id):
                if (stream := self._streams.pop(stream_id, None)) is not None:
                    stream.deliver_break()
            case WindowOpened(stream_id):
                self._wake(stream_id)
            case ConnectionFailed(_, message):
                if not self.failed.done():
                    self.failed.set_result(message)

    def flush(self) -> None:
        """Writes what is queued, and holds the client up while too much waits here."""
        if queued := self.connection.data_to_send():
            self._write(b"".join(queued))
        self.link.hold(self.connection.read_paused)

    def forget(self, stream: SpdyStream) -> None:
        self._streams.pop(stream.id, None)

    def settle(self, stream_id: int) -> None:
        self.unsettled.discard(stream_id)
        if not self.unsettled:
            self._settled.set()

    async def settled(self) -> None:
        """When no stream has anything left that its window would not take."""
        while self.unsettled:
            self._settled.clear()
            await self._settled.wait()

    def when_window(self, stream_id: int, wake: Callable[[], None]) -> None:
        """Calls `wake` once when the stream's window or the connection's has opened."""
        self._windows.append((stream_id, wake))

    def _wake(self, stream_id: int) -> None:
        waiting, self._windows = self._windows, deque()
        for each, wake in waiting:
            if stream_id in (0, each):
                wake()
            else:
                self._windows.append((each, wake))

    def go_away(self) -> None:
        """Tells the client that all is over. (Go's ends everything when it reads that.)"""
        self.connection.go_away()
        self.flush()
