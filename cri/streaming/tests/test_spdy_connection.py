"""A client and a server talk as exec and port-forward do, and misuse is told."""

from __future__ import annotations

import pytest

from cri.streaming.spdy import events
from cri.streaming.spdy.connection import Connection
from cri.streaming.spdy.errors import StreamClosed, StreamsExhausted, WrongUse
from cri.streaming.spdy.frames import GoAwayStatus, ResetStatus, Setting, data_header
from cri.streaming.spdy.limits import Limits
from cri.streaming.tests.spdy_pair import Pair


def _paused(connection: Connection) -> bool:
    # A call, since mypy holds an attribute for settled once it was asserted.
    return connection.read_paused


def test_an_exec_session_from_the_first_stream_to_the_last_byte() -> None:
    pair = Pair()
    client, server = pair.client.connection, pair.server.connection
    error = pair.opened(streamType="error")
    stdin = pair.opened(streamType="stdin")
    stdout = pair.opened(streamType="stdout")
    assert [error, stdin, stdout] == [1, 3, 5]
    assert pair.server.heard[:1] == [events.StreamOpened(1, {"streamtype": "error"})]
    assert pair.client.heard == [events.StreamReplied(i, {}) for i in (1, 3, 5)]
    assert client.send_data(stdin, b"in", fin=True) == 2
    pair.settle()
    assert bytes(pair.server.received[stdin]) == b"in"
    assert pair.server.heard[-1] == events.StreamEnded(stdin)
    # The other direction of the same stream is still open.
    server.send_data(stdin, b"back", fin=True)
    server.send_data(stdout, b"out", fin=True)
    server.send_data(error, b"{}", fin=True)
    server.go_away()
    pair.settle()
    assert {k: bytes(v) for k, v in pair.client.received.items()} == {
        stdin: b"back",
        stdout: b"out",
        error: b"{}",
    }
    assert pair.client.heard[-1] == events.GoAwayReceived(5, GoAwayStatus.OK)
    assert client.open_streams == {error, stdout}
    assert server.open_streams == {error, stdout}


def test_frames_are_cut_to_the_limit_and_fin_is_on_the_last() -> None:
    pair = Pair(limits=Limits(sent_frame=1000))
    stream_id = pair.opened()
    data = bytes(range(256)) * 10
    assert pair.server.connection.send_data(stream_id, data, fin=True) == len(data)
    sent = [bytes(part) for part in pair.server.connection.data_to_send()]
    assert sent[::2] == [
        data_header(stream_id, 1000),
        data_header(stream_id, 1000),
        data_header(stream_id, 560, 1),
    ]
    assert b"".join(sent[1::2]) == data


def test_data_sent_and_received_is_not_copied() -> None:
    server = Connection(client=False)
    client = Connection(client=True)
    stream_id = client.open_stream({})
    server.receive_data(b"".join(client.data_to_send()))
    server.reply(stream_id)
    server.data_to_send()
    data = bytearray(b"x" * 100)
    server.send_data(stream_id, data)
    _, sent = server.data_to_send()
    assert isinstance(sent, memoryview)
    assert sent.obj is data
    chunk = data_header(stream_id, 50) + b"y" * 20
    (event,) = server.receive_data(chunk)
    assert isinstance(event, events.DataReceived)
    assert event.data.obj is chunk
    assert bytes(event.data) == b"y" * 20


def test_a_data_frame_of_16_mib_passes_through_as_it_comes() -> None:
    pair = Pair()
    stream_id = pair.opened()
    length = 2**24 - 1
    server = pair.server.connection
    server.receive_data(data_header(stream_id, length, 1))
    left = length
    while left:
        piece = bytes(min(left, 1 << 20))
        left -= len(piece)
        heard = server.receive_data(piece)
        assert heard[0] == events.DataReceived(stream_id, memoryview(piece))
        server.acknowledge(stream_id, len(piece))
    assert heard[1:] == [events.StreamEnded(stream_id)]


def test_reading_pauses_until_the_consumer_has_taken_enough() -> None:
    pair = Pair()
    first, second = pair.opened(), pair.opened()
    client, server = pair.client.connection, pair.server.connection
    client.send_data(first, bytes(3 << 20))
    client.send_data(second, bytes(1 << 20))
    pair.settle()
    assert not _paused(server)
    client.send_data(second, b"x")
    pair.settle()
    assert _paused(server)
    server.acknowledge(first, 1)
    assert not _paused(server)
    with pytest.raises(WrongUse):
        server.acknowledge(first, 3 << 20)
    client.send_data(second, b"xx", fin=True)
    pair.settle()
    server.send_data(second, b"", fin=True)
    assert second not in server.open_streams
    assert _paused(server)
    # The stream is over, and its consumer went away: nobody takes the rest.
    server.reset(second)
    assert not _paused(server)
    assert b"".join(server.data_to_send()) == data_header(second, 0, 1)


def test_reading_pauses_while_answers_pile_up() -> None:
    client, server = Connection(client=True), Connection(client=False, limits=Limits(queued=100))
    for _ in range(9):
        client.ping()
    server.receive_data(b"".join(client.data_to_send()))
    assert _paused(server)
    answers = b"".join(server.data_to_send())
    assert not _paused(server)
    assert client.receive_data(answers) == [events.PingAnswered(i) for i in range(1, 18, 2)]
    assert client.receive_data(answers) == []


def test_pings_are_told_apart_by_parity_and_bounded() -> None:
    pair = Pair()
    assert pair.server.connection.ping() == 2
    pair.settle()
    assert pair.server.heard == [events.PingAnswered(2)]
    assert pair.client.heard == []
    for _ in range(16):
        pair.client.connection.ping()
    with pytest.raises(WrongUse):
        pair.client.connection.ping()


def test_a_reset_ends_both_directions_at_both_ends() -> None:
    pair = Pair()
    stream_id = pair.opened()
    client, server = pair.client.connection, pair.server.connection
    server.send_data(stream_id, b"on the way")
    client.reset(stream_id, ResetStatus.CANCEL)
    client.reset(stream_id)
    pair.settle()
    assert pair.server.heard[-1] == events.StreamReset(stream_id, ResetStatus.CANCEL, by_peer=True)
    assert stream_id not in pair.client.received
    assert client.open_streams == server.open_streams == frozenset()
    with pytest.raises(StreamClosed):
        server.send_data(stream_id, b"late")
    assert server.sendable(stream_id) == 0
    server.acknowledge(stream_id, 5)


def test_the_rest_of_a_data_frame_is_dropped_after_a_reset() -> None:
    pair = Pair()
    stream_id = pair.opened()
    server = pair.server.connection
    assert len(server.receive_data(data_header(stream_id, 10, 1) + b"12345")) == 1
    server.reset(stream_id)
    assert server.receive_data(b"67890") == []
    assert not _paused(server)
    assert pair.opened() == stream_id + 2


def test_a_refused_stream_leaves_compression_intact() -> None:
    pair = Pair(limits=Limits(streams=1))
    pair.opened(port="80")
    refused = pair.client.connection.open_stream({"port": "81"})
    pair.settle()
    assert pair.client.heard[-1] == events.StreamReset(
        refused, ResetStatus.REFUSED_STREAM, by_peer=True
    )
    pair.client.connection.reset(1)
    third = pair.opened(port="82")
    assert pair.server.heard[-1] == events.StreamOpened(third, {"port": "82"})


def test_closed_streams_that_nobody_reads_count_as_streams() -> None:
    pair = Pair(limits=Limits(streams=1))
    stream_id = pair.opened()
    pair.client.connection.send_data(stream_id, b"x", fin=True)
    pair.server.connection.send_data(stream_id, b"", fin=True)
    pair.settle()
    assert pair.server.connection.open_streams == frozenset()
    refused = pair.client.connection.open_stream({})
    pair.settle()
    assert pair.client.connection.open_streams == frozenset()
    pair.server.connection.acknowledge(stream_id, 1)
    assert pair.opened() == refused + 2


def test_streams_after_our_goaway_are_ignored() -> None:
    pair = Pair()
    pair.opened()
    pair.client.connection.open_stream({"late": "1"})
    pair.server.connection.go_away()
    pair.server.connection.go_away()
    pair.settle()
    assert pair.client.heard[-1] == events.GoAwayReceived(1, GoAwayStatus.OK)
    assert pair.server.connection.open_streams == {1}
    for end in (pair.client, pair.server):
        with pytest.raises(StreamsExhausted):
            end.connection.open_stream({})
    assert pair.client.connection.send_data(1, b"still") == 5
    pair.settle()
    assert bytes(pair.server.received[1]) == b"still"


def test_both_ends_may_open_streams_in_both_directions_or_one() -> None:
    pair = Pair()
    server = pair.server.connection
    ended = server.open_stream({"a": "1"}, fin=True, priority=7)
    pair.settle()
    assert pair.client.heard == [events.StreamOpened(ended, {"a": "1"}, priority=7, ended=True)]
    pair.client.connection.reply(ended, {"b": "2"})
    pair.client.connection.send_headers(ended, {"c": "3"})
    pair.client.connection.send_data(ended, b"only this way", fin=True)
    pair.settle()
    assert pair.server.heard == [
        events.StreamReplied(ended, {"b": "2"}),
        events.HeadersReceived(ended, {"c": "3"}),
        events.DataReceived(ended, memoryview(b"only this way")),
        events.StreamEnded(ended),
    ]
    assert server.open_streams == pair.client.connection.open_streams == frozenset()


def test_the_peers_limit_on_streams_holds() -> None:
    client = Connection(client=True)
    settings = b"\x80\x03\0\4\0\0\0\x0c\0\0\0\1\0\0\0\4\0\0\0\1"
    assert client.receive_data(settings) == [
        events.SettingsReceived({Setting.MAX_CONCURRENT_STREAMS: 1})
    ]
    stream_id = client.open_stream({})
    with pytest.raises(StreamsExhausted):
        client.open_stream({})
    client.reset(stream_id)
    assert client.open_stream({}) == 3


def test_wrong_use_is_told_and_does_no_harm() -> None:
    pair = Pair()
    client, server = pair.client.connection, pair.server.connection
    waiting = client.open_stream({})
    with pytest.raises(WrongUse):
        client.send_data(waiting, b"before the reply")
    with pytest.raises(WrongUse):
        client.send_data(99, b"no stream")
    with pytest.raises(WrongUse):
        client.reply(waiting)
    with pytest.raises(WrongUse):
        client.open_stream({}, priority=8)
    for headers in ({"": "x"}, {"a": "1", "A": "2"}, {"a": "\u20ac"}, {"a": "x" * 70_000}):
        with pytest.raises(WrongUse):
            client.open_stream(headers)
    pair.settle()
    server.reply(waiting)
    with pytest.raises(WrongUse):
        server.reply(waiting)
    assert pair.opened(fine="yes") == 3
    assert not server.failed


@pytest.mark.parametrize(
    "limits", [{"stream_window": 65_535}, {"session_window": 1 << 30}, {"sent_frame": 0}]
)
def test_limits_that_cannot_work_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(WrongUse):
        Limits(**limits)


def test_the_end_of_tcp_is_an_error_within_a_frame_alone() -> None:
    whole, cut = Connection(client=False), Connection(client=False)
    assert whole.receive_eof() == []
    assert whole.receive_data(b"anything") == []
    cut.receive_data(b"\x80\x03\0")
    (event,) = cut.receive_eof()
    assert isinstance(event, events.ConnectionFailed)
    assert cut.receive_eof() == []
