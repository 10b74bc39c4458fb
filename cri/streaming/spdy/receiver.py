"""What the peer's frames mean: events, answers, and changes of the session."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final

from cri.streaming.spdy.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    PingAnswered,
    SettingsReceived,
    StreamEnded,
    StreamOpened,
    StreamReplied,
    StreamReset,
    WindowOpened,
)
from cri.streaming.spdy.frames import (
    FLAG_FIN,
    FLAG_UNIDIRECTIONAL,
    MAX_STREAM_ID,
    MAX_WINDOW,
    FrameType,
    GoAwayStatus,
    ResetStatus,
    Setting,
    words,
)
from cri.streaming.spdy.headers import BlockBroken, HeaderDecoder, HeadersWrong
from cri.streaming.spdy.reader import ControlFrame, DataPiece, FrameError, FrameReader
from cri.streaming.spdy.session import Session, Stream

_SIZES: Final = {
    FrameType.RST_STREAM: 8,
    FrameType.PING: 4,
    FrameType.GOAWAY: 8,
    FrameType.WINDOW_UPDATE: 8,
}
_TWO: Final = struct.Struct(">II")


class _Broken(Exception):
    """The peer broke a rule after which the connection cannot go on."""


class Receiver:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._reader = FrameReader(session.limits.control_frame)
        self._decoder = HeaderDecoder(session.limits)
        # Whether the rest of the present DATA frame is for nobody.
        self._dropping = False

    def receive(self, view: memoryview) -> list[Event]:
        events: list[Event] = []
        try:
            for frame in self._reader.feed(view):
                if isinstance(frame, DataPiece):
                    events += self._data(frame)
                else:
                    events += self._control(frame)
        except (FrameError, BlockBroken, _Broken) as error:
            events.append(self._fail(str(error)))
        return events

    def end(self) -> list[Event]:
        if self._reader.within_frame:
            return [self._fail("the connection was cut within a frame")]
        return []

    def _fail(self, message: str) -> ConnectionFailed:
        self._session.failed = True
        self._session.go_away(GoAwayStatus.PROTOCOL_ERROR)
        return ConnectionFailed(GoAwayStatus.PROTOCOL_ERROR, message)

    def _stream_error(self, stream_id: int, status: ResetStatus) -> Iterator[Event]:
        """Resets a stream for what the peer did on it."""
        known = stream_id in self._session.streams
        self._session.reset(stream_id, status)
        if known:
            yield StreamReset(stream_id, status, by_peer=False)

    def _open(self, stream_id: int) -> Iterator[Event] | Stream:
        """The open stream, or else what to do about a frame for it."""
        stream = self._session.streams.get(stream_id)
        if stream is not None:
            return stream
        if not stream_id:
            raise _Broken("a frame is for stream 0")
        if self._session.ever_opened(stream_id):
            return iter(())
        return self._stream_error(stream_id, ResetStatus.INVALID_STREAM)

    def _data(self, piece: DataPiece) -> Iterator[Event]:
        session = self._session
        if piece.first:
            self._dropping = True
            if session.windows_bind:
                session.receive_window -= piece.length
                if session.receive_window < 0:
                    raise _Broken("the peer sent more than the session's window")
            found = self._open(piece.stream_id)
            if not isinstance(found, Stream):
                yield from found
            elif (status := self._refusal(found, piece.length)) is not None:
                yield from self._stream_error(found.id, status)
            else:
                self._dropping = False
        stream = session.streams.get(piece.stream_id)
        if self._dropping or stream is None:
            session.return_credit(len(piece.data))
            return
        if piece.data:
            session.take_in(stream, len(piece.data))
            yield DataReceived(stream.id, piece.data)
        if piece.last and piece.flags & FLAG_FIN:
            session.end_remote(stream)
            yield StreamEnded(stream.id)

    def _refusal(self, stream: Stream, length: int) -> ResetStatus | None:
        """Why a DATA frame is not taken; else its length is taken off the window."""
        if stream.remote_ended:
            return ResetStatus.STREAM_ALREADY_CLOSED
        if stream.ours and not stream.replied:
            return ResetStatus.PROTOCOL_ERROR
        if self._session.windows_bind:
            stream.receive_window -= length
            if stream.receive_window < 0:
                return ResetStatus.FLOW_CONTROL_ERROR
        return None

    def _control(self, frame: ControlFrame) -> Iterator[Event]:
        size = _SIZES.get(frame.kind)
        if size is not None and len(frame.payload) != size:
            raise _Broken(f"a {frame.kind.name} frame has {len(frame.payload)} bytes")
        match frame.kind:
            case FrameType.SYN_STREAM:
                return self._syn_stream(frame)
            case FrameType.SYN_REPLY:
                return self._syn_reply(frame)
            case FrameType.HEADERS:
                return self._headers(frame)
            case FrameType.RST_STREAM:
                return self._rst_stream(frame)
            case FrameType.SETTINGS:
                return self._settings(frame)
            case FrameType.PING:
                return self._ping(frame)
            case FrameType.GOAWAY:
                return self._go_away(frame)
            case FrameType.WINDOW_UPDATE:
                return self._window_update(frame)

    def _block(self, frame: ControlFrame, at: int) -> Mapping[str, str] | None:
        """The headers from `at` on; None when the stream is to be reset for them."""
        if len(frame.payload) < at:
            raise _Broken(f"a {frame.kind.name} frame has {len(frame.payload)} bytes")
        try:
            return self._decoder.decode(memoryview(frame.payload)[at:])
        except HeadersWrong:
            return None

    def _syn_stream(self, frame: ControlFrame) -> Iterator[Event]:
        session = self._session
        # Also for a stream that is refused: the next block rests on this one.
        headers = self._block(frame, 10)
        stream_id, associated = (word & MAX_STREAM_ID for word in _TWO.unpack_from(frame.payload))
        if stream_id % 2 != (0 if session.client else 1) or stream_id <= session.last_peer_id:
            raise _Broken(f"the peer opened stream {stream_id} after {session.last_peer_id}")
        if session.went_away:
            return
        session.last_peer_id = stream_id
        if headers is None:
            session.reset(stream_id, ResetStatus.PROTOCOL_ERROR)
            return
        if session.peer_streams + len(session.draining) >= session.limits.streams:
            session.reset(stream_id, ResetStatus.REFUSED_STREAM)
            return
        ended = bool(frame.flags & FLAG_FIN)
        unidirectional = bool(frame.flags & FLAG_UNIDIRECTIONAL)
        stream = session.add(stream_id, ours=False)
        stream.remote_ended = ended
        if unidirectional:
            session.end_local(stream)
        yield StreamOpened(
            stream_id, headers, frame.payload[8] >> 5, associated, ended, unidirectional
        )

    def _syn_reply(self, frame: ControlFrame) -> Iterator[Event]:
        headers = self._block(frame, 4)
        stream = self._open(_stream_id(frame))
        if not isinstance(stream, Stream):
            yield from stream
        elif headers is None or not stream.ours:
            yield from self._stream_error(stream.id, ResetStatus.PROTOCOL_ERROR)
        elif stream.replied:
            yield from self._stream_error(stream.id, ResetStatus.STREAM_IN_USE)
        else:
            stream.replied = True
            yield StreamReplied(stream.id, headers)
            yield from self._fin(frame, stream)

    def _headers(self, frame: ControlFrame) -> Iterator[Event]:
        headers = self._block(frame, 4)
        stream = self._open(_stream_id(frame))
        if not isinstance(stream, Stream):
            yield from stream
        elif headers is None or (stream.ours and not stream.replied):
            yield from self._stream_error(stream.id, ResetStatus.PROTOCOL_ERROR)
        elif stream.remote_ended:
            yield from self._stream_error(stream.id, ResetStatus.STREAM_ALREADY_CLOSED)
        else:
            yield HeadersReceived(stream.id, headers)
            yield from self._fin(frame, stream)

    def _fin(self, frame: ControlFrame, stream: Stream) -> Iterator[Event]:
        if frame.flags & FLAG_FIN:
            self._session.end_remote(stream)
            yield StreamEnded(stream.id)

    def _rst_stream(self, frame: ControlFrame) -> Iterator[Event]:
        _, status = _TWO.unpack(frame.payload)
        # No answer, whatever the stream: two ends would never stop.
        stream = self._session.streams.get(_stream_id(frame))
        if stream is not None:
            self._session.drop(stream)
            yield StreamReset(stream.id, status, by_peer=True)

    def _settings(self, frame: ControlFrame) -> Iterator[Event]:
        session = self._session
        payload = frame.payload
        if len(payload) < 4 or len(payload) != 4 + 8 * int.from_bytes(payload[:4], "big"):
            raise _Broken(f"a SETTINGS frame has {len(payload)} bytes")
        values: dict[int, int] = {}
        for key, value in _TWO.iter_unpack(payload[4:]):
            values.setdefault(key & 0xFFFFFF, value)
        limit = values.get(Setting.MAX_CONCURRENT_STREAMS)
        if limit is not None:
            session.peer_stream_limit = limit
        window = values.get(Setting.INITIAL_WINDOW_SIZE)
        if window is not None and window > MAX_WINDOW:
            raise _Broken(f"the peer announced a window of {window} bytes")
        yield SettingsReceived(values)
        if window is None:
            return
        more = window - session.initial_send_window
        session.initial_send_window = window
        if not session.windows_bind:
            session.bind_windows()
            return
        for stream in list(session.streams.values()):
            yield from self._widen(stream, more)

    def _widen(self, stream: Stream, more: int) -> Iterator[Event]:
        before = stream.send_window
        stream.send_window += more
        if stream.send_window > MAX_WINDOW:
            yield from self._stream_error(stream.id, ResetStatus.FLOW_CONTROL_ERROR)
        elif before <= 0 < stream.send_window:
            yield WindowOpened(stream.id)

    def _window_update(self, frame: ControlFrame) -> Iterator[Event]:
        session = self._session
        stream_id, more = (word & MAX_WINDOW for word in _TWO.unpack(frame.payload))
        if stream_id:
            stream = session.streams.get(stream_id)
            # Updates cross the end of a stream on the wire.
            if stream is None or not session.windows_bind:
                return
            if not more:
                yield from self._stream_error(stream_id, ResetStatus.PROTOCOL_ERROR)
            else:
                yield from self._widen(stream, more)
        elif session.windows_bind:
            before = session.send_window
            session.send_window += more
            if not more or session.send_window > MAX_WINDOW:
                raise _Broken(f"the peer widened the session's window by {more} bytes")
            if before <= 0 < session.send_window:
                yield WindowOpened(0)

    def _ping(self, frame: ControlFrame) -> Iterator[Event]:
        session = self._session
        ping_id = int.from_bytes(frame.payload, "big")
        if ping_id % 2 == (0 if session.client else 1):
            session.put(words(FrameType.PING, ping_id))
        elif ping_id in session.pings:
            session.pings.remove(ping_id)
            yield PingAnswered(ping_id)

    def _go_away(self, frame: ControlFrame) -> Iterator[Event]:
        last_good, status = _TWO.unpack(frame.payload)
        self._session.peer_gone = True
        yield GoAwayReceived(last_good & MAX_STREAM_ID, status)


def _stream_id(frame: ControlFrame) -> int:
    return int.from_bytes(frame.payload[:4], "big") & MAX_STREAM_ID
