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
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cri.streaming.spdy.events import Event
from cri.streaming.spdy.frames import GoAwayStatus, ResetStatus
from cri.streaming.spdy.limits import Limits

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
    the stream meanwhile. Once the connection has failed or ended, sending raises `StreamClosed` and
    receiving gives nothing.
    """

    def __init__(
        self,
        *,
        client: bool,
        limits: Limits | None = None,
        flow_control: FlowControl = FlowControl.WHEN_ANNOUNCED,
    ) -> None:
        raise NotImplementedError

    @property
    def read_paused(self) -> bool:
        """Whether to stop reading from the socket; see `Limits`.

        Depends on `acknowledge`, `reset` and `data_to_send`. A chunk already read may be given to
        `receive_data` all the same.
        """
        raise NotImplementedError

    @property
    def failed(self) -> bool:
        """Whether `ConnectionFailed` was told: send what is queued, then close."""
        raise NotImplementedError

    @property
    def open_streams(self) -> frozenset[int]:
        """The streams that are not yet closed in both directions."""
        raise NotImplementedError

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Takes bytes from the peer, cut anywhere, and tells what they mean; never raises for them.

        `DataReceived` holds views of `data`, which therefore must not change until they are used.
        """
        raise NotImplementedError

    def receive_eof(self) -> list[Event]:
        """The peer closed its side of TCP: `ConnectionFailed` if that cut a frame, else nothing.

        Streams that were open (`open_streams`) get no event of their own.
        """
        raise NotImplementedError

    def data_to_send(self) -> list[bytes | memoryview]:
        """Takes what is queued for the peer, in order; fit for `writelines`.

        The memory given to `send_data` is referred to, not copied: it must not change until it has
        been written.
        """
        raise NotImplementedError

    def open_stream(
        self, headers: Mapping[str, str], *, fin: bool = False, priority: int = 0
    ) -> int:
        """Opens a stream (SYN_STREAM) and gives its id; names are sent in lower case.

        DATA waits for `StreamReplied`: spdystream silently drops what comes before its reply.
        `fin` means that we shall send nothing. Raises `StreamsExhausted`.
        """
        raise NotImplementedError

    def reply(
        self, stream_id: int, headers: Mapping[str, str] = NO_HEADERS, *, fin: bool = False
    ) -> None:
        """Accepts a stream that the peer opened (SYN_REPLY), once, before any DATA on it."""
        raise NotImplementedError

    def send_headers(
        self, stream_id: int, headers: Mapping[str, str], *, fin: bool = False
    ) -> None:
        """Sends a HEADERS frame. (Kubernetes' peers ignore it.)"""
        raise NotImplementedError

    def sendable(self, stream_id: int) -> int:
        """How many bytes `send_data` takes now; 0 for a stream closed in this direction."""
        raise NotImplementedError

    def send_data(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, fin: bool = False
    ) -> int:
        """Queues DATA and gives how many bytes it took: all, unless the window is smaller.

        `fin` ends our direction with the last byte, and has no effect when not all were taken.
        Without windows it takes everything: keep the socket's buffer in view (`drain`).
        """
        raise NotImplementedError

    def reset(self, stream_id: int, status: ResetStatus = ResetStatus.CANCEL) -> None:
        """Ends a stream both ways (RST_STREAM); no more of its events come. Of a closed one: no-op.

        What was not acknowledged counts as acknowledged.
        """
        raise NotImplementedError

    def acknowledge(self, stream_id: int, count: int) -> None:
        """Says that the consumer has taken `count` bytes of a stream's `DataReceived`.

        Gives credit to the peer where windows are used, and bears on `read_paused`. Of a stream
        that was reset it is a no-op.
        """
        raise NotImplementedError

    def ping(self) -> int:
        """Sends a PING and gives its id; `PingAnswered` follows. At most 16 may be open."""
        raise NotImplementedError

    def announce_windows(self) -> None:
        """Sends SETTINGS with our `Limits.stream_window`, which makes a Thaw peer use windows.

        A client does so before its first stream; a server answers with its own by itself.
        """
        raise NotImplementedError

    def go_away(self, status: GoAwayStatus = GoAwayStatus.OK) -> None:
        """Sends GOAWAY, once: streams that the peer opens from now on are ignored.

        spdystream ends all streams and closes when it reads GOAWAY: send it last, when every stream
        was ended.
        """
        raise NotImplementedError
