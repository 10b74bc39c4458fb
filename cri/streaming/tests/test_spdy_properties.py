"""A client against a server, whatever they do and however TCP cuts it."""

from __future__ import annotations

import contextlib
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from cri.streaming.spdy import events
from cri.streaming.spdy.errors import StreamClosed, StreamsExhausted
from cri.streaming.spdy.frames import MAX_WINDOW, ResetStatus
from cri.streaming.spdy.limits import Limits
from cri.streaming.tests import fuzz_channels, fuzz_spdy
from cri.streaming.tests.spdy_pair import End, Pair

KIB = 1024
LIMITS = Limits(
    streams=6,
    unacknowledged=100 * KIB,
    sent_frame=3000,
    stream_window=64 * KIB,
    session_window=100 * KIB,
)
HEADERS = st.dictionaries(
    st.text("abcdefghij-", min_size=1, max_size=12),
    st.text(st.characters(max_codepoint=255), max_size=40),
    max_size=5,
)
Step: TypeAlias = tuple[str, bool, int, int, bool, dict[str, str]]
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(
        st.sampled_from(
            (
                "open",
                "data",
                "data",
                "data",
                "carry",
                "carry",
                "take",
                "take",
                "fin",
                "reset",
                "ping",
            )
        ),
        st.booleans(),
        st.integers(0, 5),
        st.integers(0, 40_000),
        st.booleans(),
        HEADERS,
    ),
    max_size=60,
)


class Model:
    """What should arrive: by receiver and stream, the bytes that were taken for sending."""

    def __init__(self, windows: bool) -> None:
        self.pair = Pair(windows=windows, limits=LIMITS)
        self.windows = windows
        self.sent: dict[tuple[bool, int], bytearray] = {}
        self.acknowledged: dict[tuple[bool, int], int] = {}
        self.opened: dict[tuple[bool, int], dict[str, str]] = {}
        self.ended: set[tuple[bool, int]] = set()
        self.reset: set[int] = set()
        if windows:
            self.pair.settle()

    def end(self, client: bool) -> End:
        return self.pair.client if client else self.pair.server

    def step(self, step: Step) -> None:
        kind, client, which, size, flag, headers = step
        end = self.end(client)
        connection = end.connection
        if kind == "carry":
            self.carry(to_server=client, most=size)
            return
        if kind == "ping":
            connection.ping()
            self.carry(to_server=client, most=1 << 30)
            self.carry(to_server=not client, most=1 << 30)
            return
        if kind == "open":
            try:
                stream_id = connection.open_stream(headers, fin=flag)
            except StreamsExhausted:
                return
            if flag:
                self.ended.add((client, stream_id))
            self.opened[not client, stream_id] = headers
            return
        streams = sorted(connection.open_streams)
        if not streams:
            return
        stream_id = streams[which % len(streams)]
        if kind == "reset":
            connection.reset(stream_id, ResetStatus.CANCEL)
            self.reset.add(stream_id)
        elif kind == "take":
            self.acknowledge(client, stream_id, size)
        elif stream_id in self.ready(client):
            data = bytes((size + i) % 251 for i in range(size if kind == "data" else 0))
            room = connection.sendable(stream_id)
            fin = flag or kind == "fin"
            taken = connection.send_data(stream_id, data, fin=fin)
            assert taken == min(len(data), room)
            if fin and taken == len(data):
                self.ended.add((client, stream_id))
            assert room == MAX_WINDOW or self.windows
            self.sent.setdefault((not client, stream_id), bytearray()).extend(data[:taken])

    def ready(self, client: bool) -> set[int]:
        """The streams on which this end may send, as far as windows allow."""
        end = self.end(client)
        accepted = {e.stream_id for e in end.heard if isinstance(e, events.StreamReplied)}
        accepted |= {e.stream_id for e in end.heard if isinstance(e, events.StreamOpened)}
        ended = {stream_id for by, stream_id in self.ended if by == client}
        return (accepted & end.connection.open_streams) - ended

    def carry(self, *, to_server: bool, most: int) -> None:
        receiver = self.end(not to_server)
        for event in self.pair.carry(to_server=to_server, most=most):
            assert not isinstance(event, events.ConnectionFailed)
            if isinstance(event, events.StreamReset):
                # Nothing that one end does is an error to the other.
                assert event.by_peer
                assert event.status in (ResetStatus.CANCEL, ResetStatus.REFUSED_STREAM)
                self.reset.add(event.stream_id)
            elif isinstance(event, events.StreamOpened):
                assert event.headers == self.opened[not to_server, event.stream_id]
                receiver.received.setdefault(event.stream_id, bytearray())
                # A reset may have come with it.
                with contextlib.suppress(StreamClosed):
                    receiver.connection.reply(event.stream_id)
        self.check(not to_server)

    def acknowledge(self, client: bool, stream_id: int, size: int) -> None:
        done = self.acknowledged.get((client, stream_id), 0)
        held = len(self.end(client).received.get(stream_id, b"")) - done
        self.end(client).connection.acknowledge(stream_id, min(size, held))
        self.acknowledged[client, stream_id] = done + min(size, held)

    def check(self, client: bool) -> None:
        end = self.end(client)
        held = 0
        for stream_id, data in end.received.items():
            sent = self.sent.get((client, stream_id), bytearray())
            assert sent.startswith(data)
            mine = len(data) - self.acknowledged.get((client, stream_id), 0)
            if stream_id not in self.reset:
                held += mine
                if self.windows:
                    assert mine <= LIMITS.stream_window
        if self.windows:
            assert held <= LIMITS.session_window
            assert not end.connection.read_paused

    def finish(self) -> None:
        """Everything that was taken arrives, on streams that nobody reset."""
        self.carry_all()
        for (client, stream_id), data in self.sent.items():
            if stream_id not in self.reset:
                assert self.end(client).received.get(stream_id, b"") == data
        # With all of it acknowledged, the windows are open again.
        for client in (True, False):
            for stream_id in self.end(client).received:
                self.acknowledge(client, stream_id, 1 << 30)
        self.carry_all()
        for client in (True, False):
            for stream_id in self.ready(client):
                room = self.end(client).connection.sendable(stream_id)
                assert room >= LIMITS.stream_window // 2 if self.windows else room == MAX_WINDOW
            assert not self.end(client).connection.read_paused

    def carry_all(self) -> None:
        for _ in range(4):
            self.carry(to_server=True, most=1 << 30)
            self.carry(to_server=False, most=1 << 30)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.booleans())
def test_whatever_two_ends_do_arrives_and_stays_within_the_windows(
    steps: list[Step], windows: bool
) -> None:
    model = Model(windows)
    for step in steps:
        model.step(step)
    model.finish()


INSTRUCTIONS = st.lists(
    st.tuples(
        st.sampled_from((0, 0, 1, 1, 2, 3, 4, 6, 7, 8, 9, 10, 255)),
        st.integers(0, 7),
        st.integers(0, 3),
        st.binary(max_size=40),
    ),
    max_size=30,
)


@settings(max_examples=1000, deadline=None)
@given(INSTRUCTIONS, st.integers(0, 3), st.integers(1, 100))
def test_frames_mean_the_same_however_they_are_cut(
    instructions: list[tuple[int, int, int, bytes]], mode: int, size: int
) -> None:
    wire = b"".join(
        bytes((kind, stream_id, flags, len(payload))) + payload
        for kind, stream_id, flags, payload in instructions
    )
    fuzz_spdy.one(bytes((mode | 4, size)) + wire)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_to_spdy(data: bytes) -> None:
    fuzz_spdy.one(data)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_to_channels(data: bytes) -> None:
    fuzz_channels.one(data)
