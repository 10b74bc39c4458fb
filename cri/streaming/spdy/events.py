"""What `Connection.receive_data` tells. All events are frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from cri.streaming.spdy.frames import GoAwayStatus


@dataclass(frozen=True)
class StreamOpened:
    """The peer opened a stream. Answer with `Connection.reply` or `Connection.reset`.

    Names of headers are lower case; values are decoded as Latin-1; several values of one name are
    joined by NUL, as on the wire. `ended` streams carry nothing from the peer (and have no
    `StreamEnded`); to `unidirectional` ones nothing may be sent, not even a reply.
    """

    stream_id: int
    headers: Mapping[str, str]
    priority: int = 0
    associated_id: int = 0
    ended: bool = False
    unidirectional: bool = False


@dataclass(frozen=True)
class StreamReplied:
    """The peer accepted a stream that we opened: from now on DATA may be sent on it."""

    stream_id: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class HeadersReceived:
    stream_id: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class DataReceived:
    """Some bytes of a stream, never empty; a DATA frame comes in as many pieces as it was cut into.

    `data` is a view of what `receive_data` was given, or bytes: consume or copy it before that
    memory is used again. Give every byte back with `Connection.acknowledge`.
    """

    stream_id: int
    data: memoryview


@dataclass(frozen=True)
class StreamEnded:
    """The peer sends nothing more on this stream (FIN). We may go on."""

    stream_id: int


@dataclass(frozen=True)
class StreamReset:
    """The stream is over both ways, what is buffered is to be dropped; nothing may be sent.

    `by_peer` tells the peer's RST_STREAM from an error of the peer that the core answered with its
    own. `status` is a `ResetStatus`, or a number unknown to it.
    """

    stream_id: int
    status: int
    by_peer: bool


@dataclass(frozen=True)
class WindowOpened:
    """`Connection.sendable` was 0 and is more: of one stream, or of all (stream_id 0)."""

    stream_id: int


@dataclass(frozen=True)
class SettingsReceived:
    """Settings by id (`Setting`, or a number unknown to it); the core has applied them."""

    values: Mapping[int, int]


@dataclass(frozen=True)
class PingAnswered:
    """The peer answered `Connection.ping`. (Its own pings are answered by the core.)"""

    ping_id: int


@dataclass(frozen=True)
class GoAwayReceived:
    """The peer takes no more streams; those of ours above `last_good_id` it has not seen."""

    last_good_id: int
    status: int


@dataclass(frozen=True)
class ConnectionFailed:
    """The peer broke the protocol, and the connection is over; always the last event.

    A GOAWAY with `status` is queued: send what `Connection.data_to_send` gives, then close.
    """

    status: GoAwayStatus
    message: str


Event: TypeAlias = (
    StreamOpened
    | StreamReplied
    | HeadersReceived
    | DataReceived
    | StreamEnded
    | StreamReset
    | WindowOpened
    | SettingsReceived
    | PingAnswered
    | GoAwayReceived
    | ConnectionFailed
)
