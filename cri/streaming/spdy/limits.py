"""What a peer may cost."""

from __future__ import annotations

from dataclasses import dataclass

from cri.streaming.spdy.errors import WrongUse
from cri.streaming.spdy.frames import INITIAL_WINDOW, MAX_LENGTH, MAX_WINDOW


@dataclass(frozen=True)
class Limits:
    """Bounds on a connection; sizes are in bytes.

    The specification asks for control frames of 8,192 bytes at least (SPDY/3.1, 2.2.1); those of
    Kubernetes' clients stay far below 1 KiB.
    """

    control_frame: int = 16 * 1024
    """Payload of a control frame. It bounds a compressed header block, too."""
    header_block: int = 64 * 1024
    """A header block once decompressed."""
    headers: int = 100
    """Headers in a block."""
    streams: int = 1024
    """Streams that the peer opened and that are not closed, or not all acknowledged; more are
    refused."""
    unacknowledged: int = 4 * 1024 * 1024
    """Bytes of DATA that were given out and not acknowledged, on all streams together: beyond it
    `Connection.read_paused` is set."""
    queued: int = 1024 * 1024
    """Bytes not yet taken by `Connection.data_to_send` beyond which `Connection.read_paused` is
    set: no peer makes us pile up answers."""
    sent_frame: int = 64 * 1024
    """Payload of the DATA frames that we send, at most 16,777,215. The frames that are received
    may have any size; they are passed on as they come."""
    stream_window: int = 256 * 1024
    """Receive window of each stream, where windows are used; at least 65,536."""
    session_window: int = 4 * 1024 * 1024
    """Receive window of the whole connection, where windows are used; at least 65,536, and no more
    than `unacknowledged`."""

    def __post_init__(self) -> None:
        # A peer may use 64 KiB before it has heard of other windows.
        if not INITIAL_WINDOW <= self.stream_window <= MAX_WINDOW:
            raise WrongUse(f"a stream's window of {self.stream_window} bytes is out of range")
        if not INITIAL_WINDOW <= self.session_window <= min(self.unacknowledged, MAX_WINDOW):
            raise WrongUse(f"a session's window of {self.session_window} bytes is out of range")
        if not 1 <= self.sent_frame <= MAX_LENGTH:
            raise WrongUse(f"frames of {self.sent_frame} bytes are out of range")
