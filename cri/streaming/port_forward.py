"""Port forwarding: which port and connection a SPDY stream or a WebSocket channel belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from hostlib.errors import InvalidArgument

MAX_PORTS: Final = 127
_PORT: Final = re.compile(r"[0-9]{1,5}")


class BadStream(InvalidArgument):
    """The headers of a stream, or a port, are wrong: reset the stream, or answer 400."""


@dataclass(frozen=True)
class ForwardStream:
    """One of the two streams of a forwarded connection; the pair has the same `request_id`."""

    request_id: str
    port: int
    is_error: bool
    """The error stream carries a text from the server when the connection failed, else nothing."""


def parse_stream(stream_id: int, headers: Mapping[str, str]) -> ForwardStream:
    """What a SPDY stream is for, by its headers `port`, `streamtype` and `requestid` (lower case).

    Old clients send no request id and open the error stream right before the data stream: theirs is
    the error stream's id. Raises `BadStream`.
    """
    kind = headers.get("streamtype")
    if kind not in ("data", "error"):
        raise BadStream(f"a port-forward stream is of type {kind!r}, not data or error")
    port = _port(headers.get("port", ""))
    is_error = kind == "error"
    request_id = headers.get("requestid") or str(stream_id if is_error else stream_id - 2)
    return ForwardStream(request_id, port, is_error)


def parse_ports(values: Iterable[str]) -> list[int]:
    """The ports in the values of the query parameter `port`. Raises `BadStream`.

    Only WebSocket clients send it; a runtime has the ports in CRI's request, and these come first.
    """
    return [_port(text) for value in values for text in value.split(",")]


def data_channel(index: int) -> int:
    """The WebSocket channel for the bytes of the port with this index; the next is its errors'.

    Raises `BadStream` from the 128th port on: a channel is one byte.
    """
    if index >= MAX_PORTS:
        raise BadStream(f"a WebSocket carries {MAX_PORTS} forwarded ports at most")
    return 2 * index


def first_message(port: int) -> bytes:
    """What the server sends first on both channels of a port: the port, little-endian."""
    return port.to_bytes(2, "little")


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 0 < int(text) <= 0xFFFF:
        raise BadStream(f"{text[:32]!r} is no port")
    return int(text)
