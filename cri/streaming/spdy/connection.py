"""A SPDY/3.1 connection, as server or as client: bytes in, events out, and bytes to send.

::

    connection = Connection(client=False)
    for event in connection.receive_data(chunk):
        match event: ...
    transport.writelines(connection.data_to_send())

After every call that may queue something (`receive_data` answers pings and errors itself) send what
`data_to_send` gives. Stop reading from the socket while `read_paused`, and look again after
`acknowledge`, `reset` and `data_to_send`.

Flow control. Go's spdystream, on the other end of every client of Kubernetes, neither sends
WINDOW_UPDATE nor looks at it, nor at SETTINGS: it writes as fast as TCP takes it, and slows its
peer down by not reading. Waiting for its WINDOW_UPDATE would hang after 64 KiB, and resetting what
goes beyond 64 KiB would cut every upload. So the windows of the specification (one for each stream,
and 3.1's for the session) bind neither side until the peer announces them by INITIAL_WINDOW_SIZE in
SETTINGS, which our own client sends first. Without windows `sendable` is always large, and the
only brake on the peer is `read_paused`, which one stalled stream applies to all of them, just as it
does in spdystream.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cri.streaming.spdy.errors import StreamClosed, StreamsExhausted, WrongUse
from cri.streaming.spdy.events import Event
from cri.streaming.spdy.frames import (
    FLAG_FIN,
    MAX_STREAM_ID,
    MAX_WINDOW,
    FrameType,
    GoAwayStatus,
    ResetStatus,
    control,
    data_header,
    words,
)
from cri.streaming.spdy.headers import HeaderEncoder
from cri.streaming.spdy.limits import Limits
from cri.streaming.spdy.receiver import Receiver
from cri.streaming.spdy.session import Session, Stream

_MAX_PINGS: Final = 16
_STREAM: Final = struct.Struct(">I")
_SYN_STREAM: Final = struct.Struct(">IIBB")

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class FlowControl(enum.Enum):
    """When the windows bind both sides."""

    WHEN_ANNOUNCED = enum.auto()
    """From the peer's SETTINGS with INITIAL_WINDOW_SIZE on: right for peers of both kinds."""
    ALWAYS = enum.auto()
    """From the first byte, as the specification has it; Go's peers hang on that."""


class Connection:
    """One end of a connection.

    Calls raise `WrongUse` for what no state allows, `StreamClosed` where the peer may have ended
    the stream meanwhile. Once the connection has failed, sending raises `StreamClosed` and
    receiving gives nothing.
    """

    def __init__(
        self,
        *,
        client: bool,
        limits: Limits | None = None,
        flow_control: FlowControl = FlowControl.WHEN_ANNOUNCED,
    ) -> None:
        self._session = Session(client=client, limits=limits or Limits())
        self._receiver = Receiver(self._session)
        self._encoder = HeaderEncoder(self._session.limits)
        self._received_eof = False
        self._next_ping = 1 if client else 2
        if flow_control is FlowControl.ALWAYS:
            self._session.bind_windows()

    @property
    def read_paused(self) -> bool:
        """Whether to stop reading from the socket; see `Limits`.

        Depends on `acknowledge`, `reset` and `data_to_send`. A chunk already read may be given to
        `receive_data` all the same.
        """
        session = self._session
        limits = session.limits
        return session.unacknowledged > limits.unacknowledged or session.queued > limits.queued

    @property
    def failed(self) -> bool:
        """Whether `ConnectionFailed` was told: send what is queued, then close."""
        return self._session.failed

    @property
    def open_streams(self) -> frozenset[int]:
        """The streams that are not yet closed in both directions."""
        return frozenset(self._session.streams)

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Takes bytes from the peer, cut anywhere, and tells what they mean; never raises for them.

        `DataReceived` holds views of `data`, which therefore must not change until they are used.
        """
        if self._session.failed or self._received_eof:
            return []
        return self._receiver.receive(memoryview(data).cast("B"))

    def receive_eof(self) -> list[Event]:
        """The peer closed its side of TCP: `ConnectionFailed` if that cut a frame, else nothing.

        Streams that were open (`open_streams`) get no event of their own.
        """
        if self._session.failed or self._received_eof:
            return []
        self._received_eof = True
        return self._receiver.end()

    def data_to_send(self) -> list[bytes | memoryview]:
        """Takes what is queued for the peer, in order; fit for `writelines`.

        The memory given to `send_data` is referred to, not copied: it must not change until it has
        been written.
        """
        session = self._session
        queue, session.queue, session.queued = session.queue, [], 0
        return queue

    def open_stream(
        self, headers: Mapping[str, str], *, fin: bool = False, priority: int = 0
    ) -> int:
        """Opens a stream (SYN_STREAM) and gives its id; names are sent in lower case.

        DATA waits for `StreamReplied`: spdystream silently drops what comes before its reply.
        `fin` means that we shall send nothing. Raises `StreamsExhausted`.
        """
        session = self._session
        self._not_failed()
        if not 0 <= priority <= 7:
            raise WrongUse(f"{priority} is no priority")
        ours = len(session.streams) - session.peer_streams
        if session.peer_gone or session.went_away:
            raise StreamsExhausted("the connection takes no more streams")
        if session.peer_stream_limit is not None and ours >= session.peer_stream_limit:
            raise StreamsExhausted(f"the peer allows {session.peer_stream_limit} streams at once")
        if session.next_id > MAX_STREAM_ID:
            raise StreamsExhausted("the connection has used up its stream ids")
        block = self._encoder.encode(headers)
        stream = session.add(session.next_id, ours=True)
        session.next_id += 2
        fixed = _SYN_STREAM.pack(stream.id, 0, priority << 5, 0)
        session.put(control(FrameType.SYN_STREAM, fixed + block, FLAG_FIN if fin else 0))
        if fin:
            session.end_local(stream)
        return stream.id

    def reply(
        self, stream_id: int, headers: Mapping[str, str] = NO_HEADERS, *, fin: bool = False
    ) -> None:
        """Accepts a stream that the peer opened (SYN_REPLY), once, before any DATA on it."""
        stream = self._sending(stream_id)
        if stream.ours or stream.replied:
            raise WrongUse(f"stream {stream_id} is not the peer's, or was replied to")
        self._put_headers(FrameType.SYN_REPLY, stream, headers, fin)
        stream.replied = True

    def send_headers(
        self, stream_id: int, headers: Mapping[str, str], *, fin: bool = False
    ) -> None:
        """Sends a HEADERS frame. (Kubernetes' peers ignore it.)"""
        stream = self._sending(stream_id)
        self._replied(stream)
        self._put_headers(FrameType.HEADERS, stream, headers, fin)

    def sendable(self, stream_id: int) -> int:
        """How many bytes `send_data` takes now; 0 for a stream closed in this direction."""
        session = self._session
        stream = session.streams.get(stream_id)
        if stream is None or stream.local_ended or session.failed:
            return 0
        if not session.windows_bind:
            return MAX_WINDOW
        return max(min(stream.send_window, session.send_window), 0)

    def send_data(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, fin: bool = False
    ) -> int:
        """Queues DATA and gives how many bytes it took: all, unless the window is smaller.

        `fin` ends our direction with the last byte, and has no effect when not all were taken.
        Without windows it takes everything: keep the socket's buffer in view (`drain`).
        """
        session = self._session
        stream = self._sending(stream_id)
        self._replied(stream)
        view = memoryview(data).cast("B")
        size = len(view)
        if session.windows_bind:
            taken = min(size, self.sendable(stream_id))
            stream.send_window -= taken
            session.send_window -= taken
        else:
            taken = size
        ending = fin and taken == size
        most = session.limits.sent_frame
        for start in range(0, taken, most):
            end = min(start + most, taken)
            last = ending and end == taken
            session.put(data_header(stream_id, end - start, FLAG_FIN if last else 0))
            session.put(view[start:end])
        if ending:
            if not taken:
                session.put(data_header(stream_id, 0, FLAG_FIN))
            session.end_local(stream)
        return taken

    def reset(self, stream_id: int, status: ResetStatus = ResetStatus.CANCEL) -> None:
        """Ends a stream both ways (RST_STREAM); no more of its events come.

        What was not acknowledged counts as acknowledged, also of a stream that is closed; there the
        peer is told nothing.
        """
        session = self._session
        if stream_id in session.streams:
            session.reset(stream_id, status)
        elif (stream := session.draining.get(stream_id)) is not None:
            session.release(stream, stream.unacknowledged)

    def acknowledge(self, stream_id: int, count: int) -> None:
        """Says that the consumer has taken `count` bytes of a stream's `DataReceived`.

        Gives credit to the peer where windows are used, and bears on `read_paused`. Of a stream
        that was reset it is a no-op.
        """
        session = self._session
        stream = session.streams.get(stream_id) or session.draining.get(stream_id)
        if stream is None:
            return
        if not 0 <= count <= stream.unacknowledged:
            raise WrongUse(f"{count} bytes of {stream.unacknowledged} cannot be acknowledged")
        session.release(stream, count)

    def ping(self) -> int:
        """Sends a PING and gives its id; `PingAnswered` follows. At most 16 may be open."""
        session = self._session
        self._not_failed()
        if len(session.pings) >= _MAX_PINGS:
            raise WrongUse(f"{_MAX_PINGS} pings are not answered yet")
        ping_id = self._next_ping
        self._next_ping = (self._next_ping + 2) % 2**32 or 2
        session.pings.add(ping_id)
        session.put(words(FrameType.PING, ping_id))
        return ping_id

    def announce_windows(self) -> None:
        """Sends SETTINGS with our `Limits.stream_window`, which makes a Thaw peer use windows.

        A client does so before its first stream; a server answers with its own by itself.
        """
        self._not_failed()
        self._session.announce()

    def go_away(self, status: GoAwayStatus = GoAwayStatus.OK) -> None:
        """Sends GOAWAY, once: streams that the peer opens from now on are ignored.

        spdystream ends all streams and closes when it reads GOAWAY: send it last, when every stream
        was ended.
        """
        if not self._session.failed:
            self._session.go_away(status)

    def _not_failed(self) -> None:
        if self._session.failed:
            raise StreamClosed("the peer broke the protocol, and the connection is over")

    def _sending(self, stream_id: int) -> Stream:
        """The stream, which is open in our direction. Raises `StreamClosed` and `WrongUse`."""
        self._not_failed()
        stream = self._session.streams.get(stream_id)
        if stream is not None and not stream.local_ended:
            return stream
        if not self._session.ever_opened(stream_id):
            raise WrongUse(f"there never was a stream {stream_id}")
        raise StreamClosed(f"stream {stream_id} is closed")

    def _replied(self, stream: Stream) -> None:
        if not stream.replied:
            raise WrongUse(f"stream {stream.id} has no reply yet")

    def _put_headers(
        self, kind: FrameType, stream: Stream, headers: Mapping[str, str], fin: bool
    ) -> None:
        payload = _STREAM.pack(stream.id) + self._encoder.encode(headers)
        self._session.put(control(kind, payload, FLAG_FIN if fin else 0))
        if fin:
            self._session.end_local(stream)
