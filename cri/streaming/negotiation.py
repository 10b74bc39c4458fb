"""Which protocol a client and the streaming server speak: SPDY's stream protocols and WebSocket's.

Kubernetes' servers take the first protocol of the client's list that they know. Where there is
none, SPDY answers 403 with the list of what would do, or 400 when the client named nothing;
WebSocket answers 403, and a client that names nothing gets the unversioned protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hostlib.errors import InvalidArgument

SPDY_UPGRADE: Final = "SPDY/3.1"
PROTOCOL_HEADER: Final = "X-Stream-Protocol-Version"
ACCEPTED_HEADER: Final = "X-Accepted-Stream-Protocol-Versions"
WEBSOCKET_PROTOCOL_HEADER: Final = "Sec-WebSocket-Protocol"

MAX_OFFERS: Final = 32


class NoCommonProtocol(InvalidArgument):
    """Nothing that the client offers will do: answer with `http_status` and `headers`."""

    def __init__(self, message: str, http_status: int, headers: Sequence[tuple[str, str]]) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.headers = tuple(headers)


@dataclass(frozen=True)
class StreamProtocol:
    """A version of exec and attach over SPDY."""

    name: str
    json_status: bool = False
    """The error stream carries a JSON status, exit code included (v4); else a text on failure."""
    resize: bool = False
    """A resize stream is expected with a terminal (v3)."""
    closes_stdin: bool = False
    """The server ends its side of stdin, and resets the error stream, once all streams are there
    (v1 alone: what kubelets of Kubernetes 1.0 did)."""


REMOTE_COMMAND: Final = (
    StreamProtocol("v4.channel.k8s.io", json_status=True, resize=True),
    StreamProtocol("v3.channel.k8s.io", resize=True),
    StreamProtocol("v2.channel.k8s.io"),
    StreamProtocol("channel.k8s.io", closes_stdin=True),
)
PORT_FORWARD: Final = (StreamProtocol("portforward.k8s.io"),)


@dataclass(frozen=True)
class ChannelProtocol:
    """A WebSocket subprotocol: channels in messages, or a tunnel of SPDY."""

    name: str
    base64: bool = False
    """The channel is an ASCII digit and the data base64, in text messages."""
    json_status: bool = False
    """As `StreamProtocol.json_status`."""
    half_close: bool = False
    """A message 255, CHANNEL ends a channel of the client's (v5)."""
    tunnel: bool = False
    """The bytes of the binary messages, one after the other, are a SPDY connection."""


WEBSOCKET_REMOTE_COMMAND: Final = (
    ChannelProtocol(""),
    ChannelProtocol("channel.k8s.io"),
    ChannelProtocol("base64.channel.k8s.io", base64=True),
    ChannelProtocol("v4.channel.k8s.io", json_status=True),
    ChannelProtocol("v4.base64.channel.k8s.io", base64=True, json_status=True),
    ChannelProtocol("v5.channel.k8s.io", json_status=True, half_close=True),
)
WEBSOCKET_PORT_FORWARD: Final = (
    ChannelProtocol(""),
    ChannelProtocol("v4.channel.k8s.io"),
    ChannelProtocol("v4.base64.channel.k8s.io", base64=True),
    ChannelProtocol("SPDY/3.1+portforward.k8s.io", tunnel=True),
)


def offers(values: Iterable[str]) -> list[str]:
    """The protocols in the values of a header that may be repeated, in order; 32 at most."""
    found = [name.strip() for value in values for name in value.split(",")]
    return [name for name in found if name][:MAX_OFFERS]


def choose_stream_protocol(
    values: Iterable[str], supported: Sequence[StreamProtocol]
) -> StreamProtocol:
    """The protocol for the values of `X-Stream-Protocol-Version`; answer with it in that header.

    Raises `NoCommonProtocol`.
    """
    offered = offers(values)
    if not offered:
        raise NoCommonProtocol(f"unable to upgrade: no protocol in {PROTOCOL_HEADER}", 400, ())
    known = {protocol.name: protocol for protocol in supported}
    for name in offered:
        if name in known:
            return known[name]
    raise NoCommonProtocol(
        f"unable to upgrade: client supports {offered}, server accepts {list(known)}",
        403,
        [(ACCEPTED_HEADER, name) for name in known],
    )


def choose_channel_protocol(
    values: Iterable[str], supported: Sequence[ChannelProtocol]
) -> ChannelProtocol:
    """The protocol for the values of `Sec-WebSocket-Protocol`; answer with it in that header.

    The answer has no such header when the name is empty. Raises `NoCommonProtocol`.
    """
    offered = offers(values) or [""]
    known = {protocol.name: protocol for protocol in supported}
    for name in offered:
        if name in known:
            return known[name]
    raise NoCommonProtocol(
        f"requested protocols are not supported: {offered}; supports {list(known)}", 403, ()
    )
