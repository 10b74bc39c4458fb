"""WebSocket's channels as `ClientStream`s, and the tunnel of SPDY in binary messages."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Collection
from typing import Final

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import generate_accept_token

from cri.streaming.channels import BadMessage, ChannelClosed, ChannelDecoder, encode
from cri.streaming.exchange import HttpRequest, Refused
from cri.streaming.link import Link
from cri.streaming.negotiation import WEBSOCKET_PROTOCOL_HEADER, ChannelProtocol
from cri.streaming.streams import PIECE, Bytes, ClientStream

MAX_UNTAKEN: Final = 4 * PIECE
"""Received bytes that no sink has taken, beyond which the client is not read."""

_VERSION: Final = "13"


def handshake(request: HttpRequest, protocol: ChannelProtocol) -> list[tuple[str, str]]:
    """The headers of the answer 101 (RFC 6455, 4.2). Raises `Refused`."""
    if request.method != "GET":
        raise Refused(405, "WebSocket begins with GET", (("Allow", "GET"),))
    if request.values("sec-websocket-version") != [_VERSION]:
        raise Refused(426, "WebSocket 13 is spoken here", (("Sec-WebSocket-Version", _VERSION),))
    keys = request.values("sec-websocket-key")
    try:
        valid = len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16
    except binascii.Error:
        valid = False
    if not valid:
        raise Refused(400, "Sec-WebSocket-Key is malformed")
    headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", generate_accept_token(keys[0].encode()).decode("ascii")),
    ]
    if protocol.name:
        headers.append((WEBSOCKET_PROTOCOL_HEADER, protocol.name))
    return headers


class WebSocketWire:
    """A WebSocket whose handshake is done. No extensions: nothing that comes can be inflated.

    `message` gets what comes, in pieces of messages; True with the last. It may raise `BadMessage`,
    which ends the connection with 1002.
    """

    def __init__(self, link: Link, message: Callable[[Bytes | str, bool], None]) -> None:
        self.link = link
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the client has closed, or broken the protocol."""
        self._connection = Connection(ConnectionType.SERVER)
        self._message = message

    def receive(self, data: Bytes) -> None:
        if self.over.done():
            return
        self._connection.receive_data(bytes(data))
        for event in self._connection.events():
            try:
                self._handle(event)
            except BadMessage as error:
                self.close(CloseReason.PROTOCOL_ERROR, str(error))
                self._end()
            if self.over.done():
                return

    def _handle(self, event: Event) -> None:
        match event:
            case BytesMessage() | TextMessage():
                self._message(event.data, event.message_finished)
            case Ping():
                if self._connection.state is ConnectionState.OPEN:
                    self.link.write(self._connection.send(event.response()))
            case CloseConnection():
                # The client's, or wsproto's word for what broke the protocol.
                self.close(event.code, event.reason or "")
                self._end()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def send(self, message: bytes | str) -> None:
        """Sends a message; nothing once the WebSocket is closing."""
        if self._connection.state is not ConnectionState.OPEN:
            return
        event = BytesMessage(message) if isinstance(message, bytes) else TextMessage(message)
        self.link.write(self._connection.send(event))

    def close(self, code: int, reason: str = "") -> None:
        """Sends a close frame, once."""
        if self._connection.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            self.link.write(self._connection.send(CloseConnection(code, reason or None)))


class ChannelStream(ClientStream):
    """One channel. WebSocket has no end of a channel for servers to send."""

    half_closes = False

    def __init__(self, wire: Channels, channel: int) -> None:
        super().__init__()
        self._wire = wire
        self._channel = channel

    def room(self) -> int:
        return PIECE if self._wire.link.writable else 0

    def send(self, data: Bytes) -> None:
        self._wire.send(self._channel, data)

    def end(self) -> None:
        pass

    def when_room(self, wake: Callable[[], None]) -> None:
        self._wire.link.when_writable(wake)

    def taken(self, count: int) -> None:
        self._wire.taken(count)


class Channels:
    """The channels of a WebSocket; the client may write on the `readable` ones of `count`."""

    def __init__(
        self, link: Link, protocol: ChannelProtocol, *, count: int, readable: Collection[int]
    ) -> None:
        self.link = link
        self.socket = WebSocketWire(link, self._message)
        self.streams = [ChannelStream(self, number) for number in range(count)]
        self._protocol = protocol
        self._decoder = ChannelDecoder(protocol, count=count, readable=readable)
        self._untaken = 0

    def _message(self, data: Bytes | str, finished: bool) -> None:
        for event in self._decoder.receive(data, finished=finished):
            stream = self.streams[event.channel]
            if isinstance(event, ChannelClosed):
                stream.deliver_end()
            else:
                self._untaken += len(event.data)
                stream.deliver(event.data)
        self.link.hold(self._untaken > MAX_UNTAKEN)

    def send(self, channel: int, data: Bytes) -> None:
        self.socket.send(encode(self._protocol, channel, data))

    def taken(self, count: int) -> None:
        self._untaken -= count
        self.link.hold(self._untaken > MAX_UNTAKEN)
