"""Kubernetes' channels in WebSocket messages, without I/O. The WebSocket itself is wsproto's.

The first byte of a message is its channel (an ASCII digit in base64 protocols), the rest are bytes
of it. Messages may come in fragments of any size; they are passed on as they come, so no limit on
messages is needed.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from cri.streaming.negotiation import ChannelProtocol
from hostlib.errors import InvalidArgument

_CLOSE: Final = 255
_DIGIT: Final = ord("0")
_GROUP: Final = 4


class BadMessage(InvalidArgument):
    """The peer broke the channel protocol: close the WebSocket with status 1002."""


@dataclass(frozen=True)
class ChannelData:
    """Some bytes of a channel, never empty."""

    channel: int
    data: bytes | memoryview


@dataclass(frozen=True)
class ChannelClosed:
    """The client sends nothing more on this channel (v5)."""

    channel: int


ChannelEvent: TypeAlias = ChannelData | ChannelClosed


class ChannelDecoder:
    """Takes messages or fragments of them as they come, gives the bytes of channels.

    `count` is the number of channels, `readable` those that the peer may send on. What comes on
    others is dropped, as Kubernetes' servers do.
    """

    def __init__(self, protocol: ChannelProtocol, *, count: int, readable: Collection[int]) -> None:
        self._protocol = protocol
        self._count = count
        self._readable = frozenset(readable)
        self._closed: set[int] = set()
        self._channel: int | None = None
        # Of base64: what is no whole group of four yet; of a close message: its channel.
        self._held = b""
        self._padded = False

    def receive(
        self, data: bytes | bytearray | memoryview | str, *, finished: bool = True
    ) -> list[ChannelEvent]:
        """Takes a message, or a fragment (`finished` only with the last); str from text messages.

        Raises `BadMessage` for text or base64 that is none, and for a wrong close message.
        """
        view = memoryview(data.encode() if isinstance(data, str) else data).cast("B")
        if self._channel is None and view:
            self._channel = view[0]
            view = view[1:]
        events = list(self._bytes(view))
        if finished:
            events += self._finish()
        return events

    def _bytes(self, view: memoryview) -> Iterator[ChannelEvent]:
        channel = self._channel
        if channel is None or not view:
            return
        if channel == _CLOSE and self._protocol.half_close:
            # A third byte would change nothing.
            self._held = (self._held + view[:2])[:2]
            return
        if self._protocol.base64:
            channel -= _DIGIT
        if channel not in self._readable or channel in self._closed:
            return
        decoded = self._decode(view) if self._protocol.base64 else view
        if decoded:
            yield ChannelData(channel, decoded)

    def _decode(self, view: memoryview) -> bytes:
        if self._padded:
            raise BadMessage("base64 goes on after its padding")
        text = self._held + view
        whole = len(text) - len(text) % _GROUP
        text, self._held = text[:whole], text[whole:]
        unpadded = text.rstrip(b"=")
        padding = len(text) - len(unpadded)
        # b64decode lets padding of whole groups pass.
        if padding > 2 or b"=" in unpadded:
            raise BadMessage("a message in base64 is wrongly padded")
        self._padded = padding > 0
        try:
            return base64.b64decode(text, validate=True)
        except ValueError as error:
            raise BadMessage("a message is not in base64") from error

    def _finish(self) -> Iterator[ChannelEvent]:
        channel, held = self._channel, self._held
        self._channel, self._held, self._padded = None, b"", False
        if channel == _CLOSE and self._protocol.half_close:
            if len(held) != 1 or held[0] >= self._count:
                raise BadMessage("a close message does not name a channel")
            if held[0] in self._readable and held[0] not in self._closed:
                self._closed.add(held[0])
                yield ChannelClosed(held[0])
        elif held:
            raise BadMessage("a message in base64 is cut")


def encode(
    protocol: ChannelProtocol, channel: int, data: bytes | bytearray | memoryview
) -> bytes | str:
    """A message for the peer: bytes to send as a binary message, or str to send as a text message.

    An empty one tells that the connection stands: servers send it first, on the lowest channel they
    write to.
    """
    if protocol.base64:
        return chr(_DIGIT + channel) + base64.b64encode(data).decode("ascii")
    return b"".join((bytes((channel,)), data))


def encode_close(channel: int) -> bytes:
    """The v5 message by which a client ends a channel. Servers do not send it."""
    return bytes((_CLOSE, channel))
