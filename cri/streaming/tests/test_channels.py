"""Channels in WebSocket messages."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming.channels import (
    BadMessage,
    ChannelClosed,
    ChannelData,
    ChannelDecoder,
    encode,
    encode_close,
)
from cri.streaming.negotiation import WEBSOCKET_REMOTE_COMMAND, ChannelProtocol
from cri.streaming.tests import fuzz_channels

BY_NAME = {protocol.name: protocol for protocol in WEBSOCKET_REMOTE_COMMAND}
BINARY = BY_NAME["v4.channel.k8s.io"]
BASE64 = BY_NAME["v4.base64.channel.k8s.io"]
V5 = BY_NAME["v5.channel.k8s.io"]
SAVED = sorted((Path(__file__).parent / "corpus/channels").iterdir())


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.name)
def test_inputs_that_fuzzing_saved(path: Path) -> None:
    fuzz_channels.one(path.read_bytes())


def decoder(protocol: ChannelProtocol) -> ChannelDecoder:
    return ChannelDecoder(protocol, count=5, readable={0, 4})


def test_the_messages_are_those_of_kubernetes() -> None:
    assert encode(BINARY, 1, b"out") == b"\x01out"
    assert encode(BINARY, 1, b"") == b"\x01"
    assert encode(BASE64, 3, memoryview(b"out")) == "3b3V0"
    assert encode(BASE64, 1, b"") == "1"
    assert encode_close(0) == b"\xff\x00"
    assert decoder(BINARY).receive(b"\x00in") == [ChannelData(0, b"in")]
    assert decoder(BASE64).receive("4aW4=") == [ChannelData(4, b"in")]


@given(
    st.sampled_from(WEBSOCKET_REMOTE_COMMAND),
    st.lists(st.tuples(st.sampled_from((0, 4)), st.binary(max_size=50))),
    st.integers(1, 9),
)
def test_messages_in_fragments_give_what_was_sent(
    protocol: ChannelProtocol, messages: list[tuple[int, bytes]], size: int
) -> None:
    reader = decoder(protocol)
    heard = {0: b"", 4: b""}
    for channel, data in messages:
        message = encode(protocol, channel, data)
        assert isinstance(message, str) == protocol.base64
        for at in range(0, len(message), size):
            part = message[at : at + size]
            for event in reader.receive(part, finished=at + size >= len(message)):
                assert isinstance(event, ChannelData)
                heard[event.channel] += event.data
    for channel in heard:
        assert heard[channel] == b"".join(data for number, data in messages if number == channel)


def test_what_is_not_for_a_readable_channel_is_dropped() -> None:
    reader = decoder(BINARY)
    for message in (
        b"",
        b"\x00",
        b"\x01out",
        b"\x03status",
        b"\x05none",
        b"\xffclose",
        b"\xff\x00",
    ):
        assert reader.receive(message) == []
    assert decoder(BASE64).receive("1not base64!") == []
    assert reader.receive(b"\x00in") == [ChannelData(0, b"in")]


def test_a_client_ends_a_channel_in_v5() -> None:
    reader = decoder(V5)
    assert reader.receive(b"\xff", finished=False) == []
    assert reader.receive(b"\x00") == [ChannelClosed(0)]
    assert reader.receive(b"\xff\x00") == []
    assert reader.receive(b"\x00late") == []
    assert reader.receive(b"\x04size") == [ChannelData(4, b"size")]
    assert reader.receive(b"\xff\x01") == []


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (V5, b"\xff"),
        (V5, b"\xff\x05"),
        (V5, b"\xff\x00\x00"),
        (BASE64, "0aW4"[:3]),
        (BASE64, "0aW$="),
        (BASE64, "0QQ==QQ=="),
        (BASE64, "0QQ==Q"),
        (BASE64, "0QUFB===="),
        (BASE64, "0===="),
        (BASE64, "0Q==="),
        (BASE64, "0QQ=A"),
        (BASE64, "0\u20acaaa"),
    ],
)
def test_messages_that_are_wrong(protocol: ChannelProtocol, message: bytes | str) -> None:
    with pytest.raises(BadMessage):
        decoder(protocol).receive(message)
    with pytest.raises(BadMessage):
        reader = decoder(protocol)
        for at in range(len(message)):
            reader.receive(message[at : at + 1], finished=at + 1 == len(message))


def test_nothing_piles_up_within_a_message() -> None:
    reader = decoder(V5)
    for part in (b"\xff", *[b"\x00" * 1000] * 100):
        assert reader.receive(part, finished=False) == []
    with pytest.raises(BadMessage):
        reader.receive(b"")
    stdin = decoder(BASE64)
    text = base64.b64encode(bytes(30_000)).decode()
    assert stdin.receive("0", finished=False) == []
    for _ in range(10):
        assert stdin.receive(text, finished=False) == [ChannelData(0, bytes(30_000))]
