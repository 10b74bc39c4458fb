"""Kubernetes' channels in WebSocket messages, without I/O. The WebSocket itself is wsproto's.

The first byte of a message is its channel (an ASCII digit in base64 protocols), the rest are bytes
of it. Messages may come in fragments of any size; they are passed on as they come, so no limit on
messages is needed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

from cri.streaming.negotiation import ChannelProtocol
from hostlib.errors import InvalidArgument


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
        raise NotImplementedError

    def receive(
        self, data: bytes | bytearray | memoryview | str, *, finished: bool = True
    ) -> list[ChannelEvent]:
        """Takes a message, or a fragment (`finished` only with the last); str from text messages.

        Raises `BadMessage` for text or base64 that is none, and for a wrong close message.
        """
        raise NotImplementedError


def encode(
    protocol: ChannelProtocol, channel: int, data: bytes | bytearray | memoryview
) -> bytes | str:
    """A message for the peer: bytes to send as a binary message, or str to send as a text message.

    An empty one tells that the connection stands: servers send it first, on the lowest channel they
    write to.
    """
    raise NotImplementedError


def encode_close(channel: int) -> bytes:
    """The v5 message by which a client ends a channel. Servers do not send it."""
    raise NotImplementedError
