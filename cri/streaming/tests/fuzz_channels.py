"""WebSocket channels, statuses and terminal sizes as a fuzz target; see fuzz.py."""

from __future__ import annotations

import contextlib

from cri.streaming.channels import (
    BadMessage,
    ChannelClosed,
    ChannelData,
    ChannelDecoder,
    encode,
    encode_close,
)
from cri.streaming.negotiation import WEBSOCKET_REMOTE_COMMAND, ChannelProtocol
from cri.streaming.remote_command import (
    MalformedMessage,
    SizeDecoder,
    TerminalSize,
    decode_outcome,
    encode_outcome,
    encode_size,
)

READABLE = (0, 4)
COUNT = 5


def _messages(data: bytes) -> list[bytes]:
    """Messages out of a length each, and so many bytes."""
    found = []
    while data:
        found.append(data[1 : 1 + data[0]])
        data = data[1 + data[0] :]
    return found


def _listen(protocol: ChannelProtocol, messages: list[bytes], size: int) -> list[object]:
    """What the messages mean, each in fragments of so many bytes."""
    decoder = ChannelDecoder(protocol, count=COUNT, readable=READABLE)
    heard: list[object] = []
    data = {channel: bytearray() for channel in READABLE}
    try:
        for message in messages:
            for at in range(0, max(len(message), 1), size):
                part = message[at : at + size]
                for event in decoder.receive(part, finished=at + size >= len(message)):
                    if isinstance(event, ChannelClosed):
                        heard.append(event)
                        continue
                    assert len(event.data)
                    data[event.channel] += event.data
    except BadMessage:
        heard.append("bad")
        return heard
    return [*heard, data]


def _round_trip(protocol: ChannelProtocol, data: bytes) -> None:
    decoder = ChannelDecoder(protocol, count=COUNT, readable=READABLE)
    given = b""
    for event in decoder.receive(encode(protocol, 4, data)):
        assert isinstance(event, ChannelData)
        assert event.channel == 4
        given += event.data
    assert given == data
    if protocol.half_close:
        assert decoder.receive(encode_close(4)) == [ChannelClosed(4)]
        assert decoder.receive(encode(protocol, 4, data)) == []


def _sizes(data: bytes, size: int) -> list[TerminalSize] | None:
    decoder = SizeDecoder()
    try:
        return [
            found
            for at in range(0, len(data), size)
            for found in decoder.receive(data[at : at + size])
        ]
    except MalformedMessage:
        return None


def one(given: bytes) -> None:
    """The first byte chooses the protocol, the second the size of fragments."""
    if len(given) < 2:
        return
    protocol = WEBSOCKET_REMOTE_COMMAND[given[0] % len(WEBSOCKET_REMOTE_COMMAND)]
    data = given[2:]
    size = max(given[1], len(data) // 12, 1)
    messages = _messages(data)
    assert _listen(protocol, messages, size) == _listen(protocol, messages, len(given))
    _round_trip(protocol, data)
    sizes = _sizes(data, size)
    assert sizes == _sizes(data, len(given))
    if sizes:
        assert _sizes(b"".join(encode_size(found) for found in sizes), size) == sizes
    with contextlib.suppress(MalformedMessage):
        json_status = protocol.json_status
        told = encode_outcome(
            decode_outcome(data, json_status=json_status), json_status=json_status
        )
        heard = decode_outcome(told, json_status=json_status)
        assert encode_outcome(heard, json_status=json_status) == told
