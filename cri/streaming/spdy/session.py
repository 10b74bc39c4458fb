"""The state of a connection that sending and receiving share: streams, windows, what is queued."""

from __future__ import annotations

from dataclasses import dataclass

from cri.streaming.spdy.frames import (
    INITIAL_WINDOW,
    FrameType,
    GoAwayStatus,
    ResetStatus,
    Setting,
    words,
)
from cri.streaming.spdy.limits import Limits


@dataclass(slots=True, eq=False)
class Stream:
    """An open stream. Windows are in bytes, and may be negative."""

    id: int
    ours: bool
    send_window: int
    receive_window: int
    replied: bool = False
    local_ended: bool = False
    remote_ended: bool = False
    unacknowledged: int = 0
    credit: int = 0
    """Acknowledged bytes that the peer has not been told of."""


class Session:
    def __init__(self, *, client: bool, limits: Limits) -> None:
        self.client = client
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        # Closed streams of which not all was acknowledged.
        self.draining: dict[int, Stream] = {}
        self.peer_streams = 0
        self.last_peer_id = 0
        self.next_id = 1 if client else 2
        self.windows_bind = False
        self.announced = False
        self.initial_send_window = INITIAL_WINDOW
        self.send_window = INITIAL_WINDOW
        self.receive_window = limits.session_window
        self.credit = 0
        self.unacknowledged = 0
        self.peer_stream_limit: int | None = None
        self.peer_gone = False
        self.went_away = False
        self.failed = False
        self.pings: set[int] = set()
        self.queue: list[bytes | memoryview] = []
        self.queued = 0

    def put(self, data: bytes | memoryview) -> None:
        self.queue.append(data)
        self.queued += len(data)

    def ever_opened(self, stream_id: int) -> bool:
        """Whether the id was in use once: what still comes for a closed stream is no error."""
        if stream_id % 2 == (1 if self.client else 0):
            return 0 < stream_id < self.next_id
        return 0 < stream_id <= self.last_peer_id

    def add(self, stream_id: int, *, ours: bool) -> Stream:
        stream = Stream(stream_id, ours, self.initial_send_window, self.limits.stream_window)
        self.streams[stream_id] = stream
        if not ours:
            self.peer_streams += 1
        return stream

    def end_local(self, stream: Stream) -> None:
        stream.local_ended = True
        self._forget_closed(stream)

    def end_remote(self, stream: Stream) -> None:
        stream.remote_ended = True
        self._forget_closed(stream)

    def _forget_closed(self, stream: Stream) -> None:
        if stream.local_ended and stream.remote_ended and stream.id in self.streams:
            self._remove(stream)
            if stream.unacknowledged:
                self.draining[stream.id] = stream

    def _remove(self, stream: Stream) -> None:
        del self.streams[stream.id]
        if not stream.ours:
            self.peer_streams -= 1

    def drop(self, stream: Stream) -> None:
        """The stream was reset: nobody will take what was received on it."""
        self._remove(stream)
        self.release(stream, stream.unacknowledged)

    def reset(self, stream_id: int, status: ResetStatus) -> None:
        """Sends RST_STREAM, and forgets the stream if it is known."""
        self.put(words(FrameType.RST_STREAM, stream_id, status))
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.drop(stream)

    def bind_windows(self) -> None:
        """From now on the windows bind both sides, and count; what went before does not."""
        self.windows_bind = True
        for stream in self.streams.values():
            stream.send_window = self.initial_send_window
        self.announce()

    def take_in(self, stream: Stream, count: int) -> None:
        """`count` bytes go to the consumer."""
        stream.unacknowledged += count
        self.unacknowledged += count

    def release(self, stream: Stream, count: int) -> None:
        """The consumer took `count` bytes, or will never take them."""
        stream.unacknowledged -= count
        self.unacknowledged -= count
        if not stream.unacknowledged:
            self.draining.pop(stream.id, None)
        self.return_credit(count)
        if self.windows_bind and not stream.remote_ended and stream.id in self.streams:
            stream.credit += count
            # In halves: an update for every piece would double the number of frames.
            if stream.credit * 2 >= self.limits.stream_window:
                self.put(words(FrameType.WINDOW_UPDATE, stream.id, stream.credit))
                stream.receive_window += stream.credit
                stream.credit = 0

    def return_credit(self, count: int) -> None:
        """`count` bytes of the session's window may be used again."""
        if not self.windows_bind:
            return
        self.credit += count
        if self.credit * 2 >= self.limits.session_window:
            self.put(words(FrameType.WINDOW_UPDATE, 0, self.credit))
            self.receive_window += self.credit
            self.credit = 0

    def announce(self) -> None:
        """Tells our windows; the session's is 64 KiB for every peer until it is raised."""
        if self.announced:
            return
        self.announced = True
        setting, size = Setting.INITIAL_WINDOW_SIZE, self.limits.stream_window
        self.put(words(FrameType.SETTINGS, 1, setting, size))
        if self.limits.session_window > INITIAL_WINDOW:
            more = self.limits.session_window - INITIAL_WINDOW
            self.put(words(FrameType.WINDOW_UPDATE, 0, more))

    def go_away(self, status: GoAwayStatus) -> None:
        if not self.went_away:
            self.went_away = True
            self.put(words(FrameType.GOAWAY, self.last_peer_id, status))
