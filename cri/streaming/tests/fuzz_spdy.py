"""The SPDY core as a fuzz target; see fuzz.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from cri.streaming.spdy import events
from cri.streaming.spdy.connection import Connection, FlowControl
from cri.streaming.spdy.errors import StreamClosed, StreamsExhausted
from cri.streaming.spdy.frames import INITIAL_WINDOW, FrameType, control, data_header
from cri.streaming.spdy.headers import HeaderEncoder
from cri.streaming.spdy.limits import Limits

LIMITS = Limits(
    control_frame=512,
    header_block=256,
    headers=4,
    streams=4,
    unacknowledged=INITIAL_WINDOW,
    queued=4096,
    stream_window=INITIAL_WINDOW,
    session_window=INITIAL_WINDOW,
)
_KINDS = frozenset(FrameType)
_NAMES = ("streamtype", "port", "requestid", "X", "")
_FIXED = {FrameType.SYN_STREAM: 10, FrameType.SYN_REPLY: 4, FrameType.HEADERS: 4}


def build(data: bytes) -> bytes:
    """Frames out of instructions, so that the fuzzer gets past lengths and compression.

    An instruction is a type, a stream, flags, a length, and so many bytes. Type 0 is DATA, 255
    raw.
    """
    limits = Limits()
    encoder = HeaderEncoder(limits)
    out = bytearray()
    while len(data) >= 4:
        kind, stream, flags, length = data[:4]
        payload, data = data[4 : 4 + length], data[4 + length :]
        number = stream.to_bytes(4, "big")
        if kind == 0xFF:
            out += payload
        elif kind == 0:
            out += data_header(stream, len(payload), flags) + payload
        elif kind in _FIXED:
            fixed = (number + payload).ljust(10, b"\0")[: _FIXED[FrameType(kind)]]
            pairs = {_NAMES[value % 4]: chr(value) for value in payload}
            out += control(FrameType(kind), fixed + encoder.encode(pairs), flags)
        elif kind == FrameType.SETTINGS:
            out += control(FrameType.SETTINGS, b"\0\0\0\1" + (number + payload)[:8], flags)
        elif kind in _KINDS:
            out += control(FrameType(kind), number + payload, flags)
        else:
            out += bytes((0x80, 3, 0, kind, flags, 0, 0, len(payload))) + payload
    return bytes(out)


def connection(mode: int) -> Connection:
    made = Connection(
        client=bool(mode & 1),
        limits=LIMITS,
        flow_control=FlowControl.ALWAYS if mode & 2 else FlowControl.WHEN_ANNOUNCED,
    )
    if mode & 1:
        for _ in range(3):
            made.open_stream({"streamtype": "stdin"})
        made.ping()
    return made


def merged(heard: Iterable[events.Event]) -> list[object]:
    """The events, data put together again, in a form that can be compared."""
    result: list[object] = []
    data: dict[int, bytearray] = {}
    for event in heard:
        if isinstance(event, events.DataReceived):
            assert len(event.data)
            if event.stream_id not in data:
                data[event.stream_id] = bytearray()
            data[event.stream_id] += event.data
        else:
            result.append(event)
    return [*result, data]


def _listen(wire: bytes, mode: int, size: int) -> tuple[list[object], bytes]:
    """However the bytes are cut, they mean the same and get the same answers."""
    quiet = connection(mode)
    heard: list[events.Event] = []
    for at in range(0, len(wire), size):
        heard += quiet.receive_data(wire[at : at + size])
    heard += quiet.receive_eof()
    _check(quiet, mode, heard)
    return merged(heard), b"".join(quiet.data_to_send())


def _check(end: Connection, mode: int, heard: list[events.Event]) -> None:
    for event in heard[:-1]:
        assert not isinstance(event, events.ConnectionFailed)
    failed = bool(heard) and isinstance(heard[-1], events.ConnectionFailed)
    assert end.failed == failed
    if failed:
        assert end.receive_data(b"\x80\x03\0\6\0\0\0\4\0\0\0\1") == []
    peers = sum(stream_id % 2 == (0 if mode & 1 else 1) for stream_id in end.open_streams)
    assert peers <= LIMITS.streams


def _talk(wire: bytes, mode: int, size: int) -> None:
    """A peer that takes part gets no error but those that a race explains."""
    end = connection(mode)
    heard: list[events.Event] = []
    for at in range(0, len(wire), size):
        new = end.receive_data(wire[at : at + size])
        heard += new
        for event in new:
            with contextlib.suppress(StreamClosed, StreamsExhausted):
                _react(end, event)
        if end.read_paused:
            end.data_to_send()
            for stream_id in end.open_streams:
                end.reset(stream_id)
            assert end.failed or not end.read_paused
    _check(end, mode, heard)


def _react(end: Connection, event: events.Event) -> None:
    match event:
        case events.StreamOpened():
            end.reply(event.stream_id)
            end.send_data(event.stream_id, b"hello", fin=bool(event.stream_id & 2))
        case events.StreamReplied():
            end.send_data(event.stream_id, bytes(70_000), fin=True)
        case events.DataReceived():
            end.acknowledge(event.stream_id, len(event.data))
        case events.StreamEnded():
            end.reset(event.stream_id)
        case events.HeadersReceived():
            end.send_headers(event.stream_id, event.headers)
        case events.PingAnswered():
            end.open_stream({"a": "b"})


def one(given: bytes) -> None:
    """The first byte is the mode (role, windows, built or raw), the second the size of the cuts."""
    if len(given) < 2:
        return
    mode = given[0]
    wire = build(given[2:]) if mode & 4 else given[2:]
    # Many cuts cost much and find little.
    size = max(given[1], len(wire) // 12, 1)
    assert _listen(wire, mode, size) == _listen(wire, mode, len(wire) or 1)
    _talk(wire, mode, size)
