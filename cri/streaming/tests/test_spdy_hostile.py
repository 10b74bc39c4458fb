"""What a peer may not do, and what it gets for it."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest

from cri.streaming.spdy import events
from cri.streaming.spdy.connection import Connection
from cri.streaming.spdy.errors import StreamClosed
from cri.streaming.spdy.frames import (
    FrameType,
    GoAwayStatus,
    ResetStatus,
    control,
    data_header,
    words,
)
from cri.streaming.spdy.headers import DICTIONARY, HeaderEncoder
from cri.streaming.spdy.limits import Limits
from cri.streaming.tests import fuzz_spdy

SAVED = sorted((Path(__file__).parent / "corpus/spdy").iterdir())


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.name)
def test_inputs_that_fuzzing_saved(path: Path) -> None:
    fuzz_spdy.one(path.read_bytes())


class Peer:
    """A client that writes frames by hand, and the server that reads them."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.server = Connection(client=False, limits=limits)
        self._encoder = HeaderEncoder(Limits())

    def syn(self, stream_id: int, flags: int = 0, **headers: str) -> bytes:
        fixed = struct.pack(">IIH", stream_id, 0, 0)
        return control(FrameType.SYN_STREAM, fixed + self._encoder.encode(headers), flags)

    def headers(self, kind: FrameType, stream_id: int, flags: int = 0) -> bytes:
        return control(kind, struct.pack(">I", stream_id) + self._encoder.encode({}), flags)

    def say(self, *frames: bytes) -> list[events.Event]:
        return self.server.receive_data(b"".join(frames))

    def answer(self) -> bytes:
        return b"".join(self.server.data_to_send())


def rst(stream_id: int, status: ResetStatus) -> bytes:
    return words(FrameType.RST_STREAM, stream_id, status)


def block(text: bytes, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    deflate = zlib.compressobj(9, zdict=DICTIONARY)
    return deflate.compress(text) + deflate.flush(flush)


def pairs(*given: bytes) -> bytes:
    strings = b"".join(len(text).to_bytes(4, "big") + text for text in given)
    return (len(given) // 2).to_bytes(4, "big") + strings


def opening(compressed: bytes) -> bytes:
    return control(FrameType.SYN_STREAM, struct.pack(">IIH", 1, 0, 0) + compressed)


FATAL = {
    "version 2": b"\x80\x02\0\6\0\0\0\4\0\0\0\1",
    "a long control frame": b"\x80\x03\0\1\0\0\x40\x01",
    "a short SYN_STREAM": control(FrameType.SYN_STREAM, bytes(9)),
    "no SYN_REPLY at all": control(FrameType.SYN_REPLY, b""),
    "a short RST_STREAM": words(FrameType.RST_STREAM, 1),
    "a long PING": words(FrameType.PING, 1, 1),
    "a short GOAWAY": words(FrameType.GOAWAY, 1),
    "a short WINDOW_UPDATE": words(FrameType.WINDOW_UPDATE, 1),
    "SETTINGS that count wrong": words(FrameType.SETTINGS, 2, 7, 1),
    "an empty SETTINGS": control(FrameType.SETTINGS, b""),
    "a window out of range": words(FrameType.SETTINGS, 1, 7, 1 << 31),
    "data on stream 0": data_header(0, 1) + b"x",
    "no zlib": opening(b"garbage"),
    "another dictionary": opening(block(pairs())[:2] + b"\0\0\0\1" + block(pairs())[6:]),
    "the end of compression": opening(block(pairs(), zlib.Z_FINISH)),
    "no count": opening(block(b"\0\0")),
    "a name that is cut": opening(block(b"\0\0\0\1\0\0\0\5ab")),
    "a length that is cut": opening(block(b"\0\0\0\1\0\0")),
    "bytes left over": opening(block(pairs() + b"x")),
    "too many headers": opening(block((101).to_bytes(4, "big") + bytes(808))),
    "an absurd count": opening(block(b"\xff\xff\xff\xff")),
    "an absurd length": opening(block(b"\0\0\0\1\xff\xff\xff\xff")),
    "a block too long": opening(block(pairs(b"a", bytes(65_536)))),
}


@pytest.mark.parametrize("frame", FATAL.values(), ids=FATAL)
def test_what_ends_the_connection_with_a_goaway(frame: bytes) -> None:
    peer = Peer()
    (event,) = peer.say(frame, words(FrameType.PING, 1))
    assert isinstance(event, events.ConnectionFailed)
    assert event.status is GoAwayStatus.PROTOCOL_ERROR
    assert peer.server.failed
    assert peer.answer() == words(FrameType.GOAWAY, 0, 1)
    assert peer.say(words(FrameType.PING, 3)) == []
    assert peer.answer() == b""
    with pytest.raises(StreamClosed):
        peer.server.ping()
    with pytest.raises(StreamClosed):
        peer.server.open_stream({})
    with pytest.raises(StreamClosed):
        peer.server.send_data(1, b"")


def test_ids_are_odd_and_rise() -> None:
    for ids in ((2,), (0,), (3, 1), (3, 3)):
        peer = Peer()
        heard = peer.say(*(peer.syn(stream_id) for stream_id in ids))
        assert isinstance(heard[-1], events.ConnectionFailed)
        assert len(heard) == len(ids)


def test_events_before_the_error_are_told() -> None:
    peer = Peer()
    heard = peer.say(peer.syn(1), data_header(1, 2), b"ok", FATAL["a long PING"])
    assert [type(event) for event in heard] == [
        events.StreamOpened,
        events.DataReceived,
        events.ConnectionFailed,
    ]
    assert peer.answer() == words(FrameType.GOAWAY, 1, 1)


@pytest.mark.parametrize(
    "given", [(b"", b"x"), (b"Upper", b"x"), (b"twice", b"1", b"twice", b"2")], ids=str
)
def test_headers_that_are_not_allowed_cost_the_stream(given: tuple[bytes, ...]) -> None:
    peer = Peer()
    deflate = zlib.compressobj(9, zdict=DICTIONARY)
    frames = []
    for stream_id, text in ((1, pairs(*given)), (3, pairs(b"good", b"x"))):
        compressed = deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH)
        fixed = struct.pack(">IIH", stream_id, 0, 0)
        frames.append(control(FrameType.SYN_STREAM, fixed + compressed))
    assert peer.say(*frames) == [events.StreamOpened(3, {"good": "x"})]
    assert peer.answer() == rst(1, ResetStatus.PROTOCOL_ERROR)


def test_a_bomb_is_not_inflated() -> None:
    peer = Peer()
    bomb = block(pairs(b"a", bytes(10_000_000)))
    assert len(bomb) < Limits().control_frame
    frame = opening(bomb)
    tracemalloc.start()
    try:
        (event,) = peer.say(frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(event, events.ConnectionFailed)
    assert peak < 10 * Limits().header_block


def test_data_where_there_is_none_to_come() -> None:
    peer = Peer()
    peer.say(peer.syn(1, flags=1), peer.syn(3))
    assert peer.say(data_header(1, 1) + b"x") == [
        events.StreamReset(1, ResetStatus.STREAM_ALREADY_CLOSED, by_peer=False)
    ]
    # Once the stream is closed, what crossed the reset on the wire is no error.
    assert peer.say(data_header(1, 1) + b"x", rst(1, ResetStatus.CANCEL)) == []
    assert peer.say(data_header(5, 1) + b"x") == []
    assert peer.answer() == rst(1, ResetStatus.STREAM_ALREADY_CLOSED) + rst(
        5, ResetStatus.INVALID_STREAM
    )
    assert peer.say(rst(7, ResetStatus.CANCEL), rst(0, ResetStatus.CANCEL)) == []
    assert peer.answer() == b""
    assert peer.server.open_streams == {3}


def test_replies_and_headers_where_none_may_come() -> None:
    peer = Peer()
    assert peer.server.open_stream({}) == 2
    assert peer.server.open_stream({}) == 4
    peer.say(peer.syn(1))
    peer.answer()
    assert peer.say(peer.headers(FrameType.SYN_REPLY, 1)) == [
        events.StreamReset(1, ResetStatus.PROTOCOL_ERROR, by_peer=False)
    ]
    assert peer.say(
        peer.headers(FrameType.SYN_REPLY, 2, flags=1), peer.headers(FrameType.SYN_REPLY, 2)
    ) == [
        events.StreamReplied(2, {}),
        events.StreamEnded(2),
        events.StreamReset(2, ResetStatus.STREAM_IN_USE, by_peer=False),
    ]
    assert peer.say(data_header(4, 0)) == [
        events.StreamReset(4, ResetStatus.PROTOCOL_ERROR, by_peer=False)
    ]
    assert peer.say(peer.headers(FrameType.HEADERS, 9)) == []
    assert peer.answer() == b"".join(
        (
            rst(1, ResetStatus.PROTOCOL_ERROR),
            rst(2, ResetStatus.STREAM_IN_USE),
            rst(4, ResetStatus.PROTOCOL_ERROR),
            rst(9, ResetStatus.INVALID_STREAM),
        )
    )


def test_headers_after_the_end_of_a_stream() -> None:
    peer = Peer()
    peer.say(peer.syn(1))
    assert peer.say(peer.headers(FrameType.HEADERS, 1, 1), peer.headers(FrameType.HEADERS, 1)) == [
        events.HeadersReceived(1, {}),
        events.StreamEnded(1),
        events.StreamReset(1, ResetStatus.STREAM_ALREADY_CLOSED, by_peer=False),
    ]


def test_unknown_control_frames_are_skipped_whatever_their_length() -> None:
    peer = Peer()
    unknown = b"\x80\x03\0\x0a\0\xff\xff\xff" + bytes(2**24 - 1)
    for at in range(0, len(unknown), 1 << 20):
        assert peer.say(unknown[at : at + (1 << 20)]) == []
    assert peer.say(peer.syn(1)) == [events.StreamOpened(1, {})]
    assert peer.answer() == b""


def test_a_stream_to_which_nothing_may_be_sent() -> None:
    peer = Peer()
    assert peer.say(peer.syn(1, flags=2), data_header(1, 1, 1), b"x") == [
        events.StreamOpened(1, {}, unidirectional=True),
        events.DataReceived(1, memoryview(b"x")),
        events.StreamEnded(1),
    ]
    with pytest.raises(StreamClosed):
        peer.server.reply(1)
    assert peer.server.open_streams == frozenset()


def test_data_for_nobody_is_not_given_to_a_stream_that_opens_meanwhile() -> None:
    client = Connection(client=True)
    assert client.receive_data(data_header(1, 4, 1) + b"ab") == []
    assert b"".join(client.data_to_send()) == rst(1, ResetStatus.INVALID_STREAM)
    assert client.open_stream({}) == 1
    assert client.receive_data(b"cd") == []
    assert client.open_streams == {1}
