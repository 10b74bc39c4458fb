"""Flow control: none for Go's peers, the specification's between peers that announce it."""

from __future__ import annotations

import pytest

from cri.streaming.spdy import events
from cri.streaming.spdy.connection import Connection, FlowControl
from cri.streaming.spdy.frames import (
    MAX_WINDOW,
    FrameType,
    GoAwayStatus,
    ResetStatus,
    data_header,
    words,
)
from cri.streaming.spdy.limits import Limits
from cri.streaming.tests.spdy_pair import Pair

KIB = 1024
SMALL = Limits(stream_window=64 * KIB, session_window=96 * KIB)


def update(stream_id: int, more: int) -> bytes:
    return words(FrameType.WINDOW_UPDATE, stream_id, more)


def window(size: int) -> bytes:
    return words(FrameType.SETTINGS, 1, 7, size)


def test_peers_that_announce_nothing_are_not_bound_nor_waited_for() -> None:
    pair = Pair()
    stream_id = pair.opened()
    data = bytes(3 << 20)
    assert pair.server.connection.sendable(stream_id) == MAX_WINDOW
    assert pair.server.connection.send_data(stream_id, data) == len(data)
    assert pair.client.connection.send_data(stream_id, data) == len(data)
    pair.settle()
    assert len(pair.client.received[stream_id]) == len(data)
    assert len(pair.server.received[stream_id]) == len(data)
    pair.server.connection.acknowledge(stream_id, len(data))
    assert pair.server.connection.data_to_send() == []


def test_a_stream_waits_for_its_window_and_no_other_stream_does() -> None:
    pair = Pair(windows=True)
    first, second = pair.opened(), pair.opened()
    server = pair.server.connection
    size = Limits().stream_window
    assert server.sendable(first) == size
    assert server.send_data(first, bytes(size + 10), fin=True) == size
    assert server.send_data(first, b"more") == 0
    assert server.send_data(second, b"free", fin=True) == 4
    pair.settle()
    assert first in server.open_streams
    client = pair.client.connection
    client.acknowledge(first, size // 2 - 1)
    pair.settle()
    assert server.sendable(first) == 0
    client.acknowledge(first, 1)
    pair.settle()
    assert pair.server.heard[-1] == events.WindowOpened(first)
    assert server.sendable(first) == size // 2
    assert server.send_data(first, bytes(10), fin=True) == 10
    pair.settle()
    assert len(pair.client.received[first]) == size + 10
    assert pair.client.heard[-1] == events.StreamEnded(first)


def test_the_sessions_window_bounds_all_streams_together() -> None:
    pair = Pair(windows=True, limits=SMALL)
    first, second = pair.opened(), pair.opened()
    server, client = pair.server.connection, pair.client.connection
    assert server.send_data(first, bytes(64 * KIB)) == 64 * KIB
    assert server.sendable(second) == 32 * KIB
    assert server.send_data(second, bytes(64 * KIB)) == 32 * KIB
    pair.settle()
    client.acknowledge(first, 48 * KIB)
    pair.settle()
    assert pair.server.heard[-2:] == [events.WindowOpened(0), events.WindowOpened(first)]
    assert server.sendable(second) == 32 * KIB


def test_credit_goes_on_for_more_than_a_window() -> None:
    pair = Pair(windows=True, limits=SMALL)
    stream_id = pair.opened()
    for _ in range(20):
        assert pair.client.connection.send_data(stream_id, bytes(40 * KIB)) == 40 * KIB
        pair.settle()
        pair.server.connection.acknowledge(stream_id, 40 * KIB)
        pair.settle()
    assert len(pair.server.received[stream_id]) == 800 * KIB


def test_a_reset_gives_the_sessions_window_back() -> None:
    pair = Pair(windows=True, limits=SMALL)
    first, second = pair.opened(), pair.opened()
    server, client = pair.server.connection, pair.client.connection
    server.send_data(first, bytes(64 * KIB))
    server.send_data(second, bytes(32 * KIB))
    pair.carry(to_server=False, most=40 * KIB)
    client.reset(first)
    pair.settle()
    assert server.sendable(second) == 32 * KIB
    client.acknowledge(second, 32 * KIB)
    pair.settle()
    # Less than half of the session's window is held back.
    assert server.send_data(second, bytes(64 * KIB)) > 32 * KIB


def test_who_exceeds_a_streams_window_loses_the_stream() -> None:
    server = Connection(client=False, limits=SMALL)
    client = Connection(client=True)
    client.announce_windows()
    client.open_stream({})
    heard = server.receive_data(b"".join(client.data_to_send()))
    server.reply(1)
    server.data_to_send()
    assert heard[-1] == events.StreamOpened(1, {})
    assert server.receive_data(data_header(1, 64 * KIB + 1) + b"x") == [
        events.StreamReset(1, ResetStatus.FLOW_CONTROL_ERROR, by_peer=False)
    ]


def test_who_exceeds_the_sessions_window_loses_the_connection() -> None:
    server = Connection(client=False, limits=SMALL)
    server.receive_data(window(64 * KIB))
    (*_, event) = server.receive_data(data_header(1, 96 * KIB + 1) + b"x")
    assert isinstance(event, events.ConnectionFailed)
    assert event.status is GoAwayStatus.PROTOCOL_ERROR


def test_windows_from_the_first_byte() -> None:
    server = Connection(client=False, flow_control=FlowControl.ALWAYS)
    client = Connection(client=True, flow_control=FlowControl.ALWAYS)
    stream_id = client.open_stream({})
    server.receive_data(b"".join(client.data_to_send()))
    server.reply(stream_id)
    assert server.sendable(stream_id) == Limits().stream_window
    client.receive_data(b"".join(server.data_to_send()))
    assert client.sendable(stream_id) == Limits().stream_window


def _strict() -> Connection:
    """A server that has opened stream 2 to a client with windows of 64 KiB."""
    server = Connection(client=False, flow_control=FlowControl.ALWAYS)
    server.open_stream({})
    reply = Connection(client=True)
    reply.receive_data(b"".join(server.data_to_send()))
    reply.reply(2)
    server.receive_data(words(FrameType.SETTINGS, 1, 4, 9) + b"".join(reply.data_to_send()[-1:]))
    assert server.sendable(2) == 64 * KIB
    return server


def test_a_window_that_shrinks_may_be_negative() -> None:
    server = _strict()
    server.receive_data(update(0, 64 * KIB))
    server.send_data(2, bytes(60 * KIB))
    assert server.receive_data(window(1 * KIB)) == [events.SettingsReceived({7: 1 * KIB})]
    assert server.sendable(2) == 0
    assert server.receive_data(update(2, 59 * KIB)) == []
    assert server.receive_data(update(2, 1)) == [events.WindowOpened(2)]
    assert server.sendable(2) == 1
    assert server.receive_data(window(2 * KIB))[1:] == []
    assert server.sendable(2) == 1 * KIB + 1


@pytest.mark.parametrize("more", [0, MAX_WINDOW])
def test_updates_out_of_range(more: int) -> None:
    status = ResetStatus.FLOW_CONTROL_ERROR if more else ResetStatus.PROTOCOL_ERROR
    server = _strict()
    assert server.receive_data(update(2, more)) == [events.StreamReset(2, status, by_peer=False)]
    assert server.receive_data(update(2, more)) == []
    (event,) = server.receive_data(update(0, more))
    assert isinstance(event, events.ConnectionFailed)


def test_a_setting_that_overflows_a_window() -> None:
    server = _strict()
    assert server.receive_data(update(2, 1)) == []
    assert server.receive_data(window(MAX_WINDOW)) == [
        events.SettingsReceived({7: MAX_WINDOW}),
        events.StreamReset(2, ResetStatus.FLOW_CONTROL_ERROR, by_peer=False),
    ]


def test_windows_that_are_announced_late_count_from_then_on() -> None:
    pair = Pair()
    stream_id = pair.opened()
    client, server = pair.client.connection, pair.server.connection
    size = Limits().stream_window
    client.send_data(stream_id, bytes(1 << 20))
    server.send_data(stream_id, bytes(1 << 20))
    pair.settle()
    server.acknowledge(stream_id, (1 << 20) - 10)
    client.announce_windows()
    client.announce_windows()
    pair.settle()
    assert client.send_data(stream_id, bytes(size + 1)) == size
    assert server.send_data(stream_id, bytes(size + 1)) == size
    pair.settle()
    assert len(pair.server.received[stream_id]) == (1 << 20) + size
    assert len(pair.client.received[stream_id]) == (1 << 20) + size
    server.acknowledge(stream_id, size + 10)
    pair.settle()
    assert client.sendable(stream_id) == size + 10
    assert client.open_streams == server.open_streams == {stream_id}
