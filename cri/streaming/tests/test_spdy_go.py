"""What Go's implementation writes, recorded by e2e/tools/spdy-vectors."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from cri.streaming.spdy import events
from cri.streaming.spdy.connection import Connection
from cri.streaming.spdy.frames import ResetStatus
from cri.streaming.spdy.headers import DICTIONARY
from cri.streaming.tests.fuzz_spdy import merged

WIRE = {
    name: bytes.fromhex(text)
    for name, text in json.loads((Path(__file__).parent / "go-session.json").read_text()).items()
}
STDIN = b"hello " + b"x" * 1000


def test_the_dictionary_is_the_specifications() -> None:
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_client_of_go(size: int) -> None:
    server, heard = _hear(Connection(client=False), WIRE["client"], size)
    streams = [e.headers["streamtype"] for e in heard if isinstance(e, events.StreamOpened)]
    assert streams == ["error", "stdin", "stdout", "resize"]
    assert heard[4:] == [
        events.StreamEnded(3),
        events.StreamReset(7, ResetStatus.CANCEL, by_peer=True),
        events.GoAwayReceived(0, 0),
        {7: b'{"Width":80,"Height":24}\n', 3: STDIN},
    ]
    assert b"".join(server.data_to_send()) == b"\x80\x03\0\6\0\0\0\4\0\0\0\1"


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_server_of_go(size: int) -> None:
    client = Connection(client=True)
    for kind in ("error", "stdin", "stdout", "resize"):
        client.open_stream({"streamType": kind})
    client.ping()
    _, heard = _hear(client, WIRE["server"], size)
    assert heard[:4] == [events.StreamReplied(i, {}) for i in (1, 3, 5, 7)]
    assert events.PingAnswered(1) in heard
    assert events.StreamEnded(5) in heard
    assert events.StreamEnded(1) in heard
    assert heard[-2] == events.GoAwayReceived(7, 0)
    assert heard[-1] == {5: STDIN, 1: b'{"metadata":{},"status":"Success"}'}


def test_frames_that_go_knows_and_kubernetes_does_not_send() -> None:
    server, heard = _hear(Connection(client=False), WIRE["frames"], 10_000)
    headers = {"one": "1", "many": "a\0b"}
    assert heard[:-1] == [
        events.SettingsReceived({4: 100, 7: 70_000}),
        events.StreamOpened(1, headers, priority=5),
        events.HeadersReceived(1, headers),
        events.StreamOpened(3, {}, associated_id=1, ended=True),
        events.StreamReset(1, ResetStatus.INTERNAL_ERROR, by_peer=True),
        events.GoAwayReceived(0, 2),
    ]
    server.reply(3)
    assert server.sendable(3) == 65_536 + 2000


def _hear(connection: Connection, wire: bytes, size: int) -> tuple[Connection, list[object]]:
    heard: list[events.Event] = []
    for at in range(0, len(wire), size):
        heard += connection.receive_data(wire[at : at + size])
    return connection, merged(heard)
