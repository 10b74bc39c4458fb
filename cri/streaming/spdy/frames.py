"""Frames of SPDY/3.1 (its specification, section 2.2): numbers and layouts. All is big-endian."""

from __future__ import annotations

import enum
import struct
from typing import Final

VERSION: Final = 3
HEADER_SIZE: Final = 8
MAX_LENGTH: Final = 2**24 - 1
MAX_STREAM_ID: Final = 2**31 - 1
MAX_WINDOW: Final = 2**31 - 1
INITIAL_WINDOW: Final = 65_536

FLAG_FIN: Final = 0x01
FLAG_UNIDIRECTIONAL: Final = 0x02


class FrameType(enum.IntEnum):
    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class ResetStatus(enum.IntEnum):
    """Why a stream was reset (RST_STREAM)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9
    FRAME_TOO_LARGE = 11


class GoAwayStatus(enum.IntEnum):
    """Why a connection takes no more streams (GOAWAY)."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class Setting(enum.IntEnum):
    """The settings that the core knows."""

    MAX_CONCURRENT_STREAMS = 4
    INITIAL_WINDOW_SIZE = 7


_WORDS: Final = [struct.Struct(f">{n}I") for n in range(6)]


def control(kind: FrameType, payload: bytes, flags: int = 0) -> bytes:
    """A control frame."""
    return b"".join(
        (_WORDS[2].pack((0x8000 | VERSION) << 16 | kind, flags << 24 | len(payload)), payload)
    )


def words(kind: FrameType, *values: int, flags: int = 0) -> bytes:
    """A control frame whose payload is 32-bit numbers."""
    return control(kind, _WORDS[len(values)].pack(*values), flags)


def data_header(stream_id: int, length: int, flags: int = 0) -> bytes:
    """What precedes the payload of a DATA frame."""
    return _WORDS[2].pack(stream_id, flags << 24 | length)
