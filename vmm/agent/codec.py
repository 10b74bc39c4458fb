"""Frames of the agent protocol: bytes in, frames out, no I/O. Format: docs/protocol.md."""

from __future__ import annotations

import enum
import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final

from hostlib.errors import DataLoss

MAGIC: Final = b"THAW"
HEADER_SIZE: Final = 28
MAX_PAYLOAD: Final = 65536
MAX_MESSAGE: Final = 4 * 1024 * 1024
MAX_DEPTH: Final = 64
INITIAL_CREDIT: Final = 262_144
MAX_CREDIT: Final = 2**31 - 1

_HEAD: Final = struct.Struct("<4sQBBHII")
_CHECKSUM: Final = struct.Struct("<I")


class AgentProtocolError(DataLoss):
    """The guest sent what the protocol does not allow."""


class Type(enum.IntEnum):
    HELLO = 1
    REQUEST = 2
    RESPONSE = 3
    EVENT = 4
    DATA = 5
    CREDIT = 6
    RESET = 7


class Flag(enum.IntFlag):
    NONE = 0
    FIN = 1
    MORE = 2


_ALLOWED_FLAGS: Final = {
    Type.HELLO: 0,
    Type.REQUEST: Flag.MORE,
    Type.RESPONSE: Flag.MORE,
    Type.EVENT: Flag.MORE,
    Type.DATA: Flag.FIN,
    Type.CREDIT: 0,
    Type.RESET: 0,
}


@dataclass(frozen=True)
class Frame:
    nonce: int
    type: Type
    stream: int
    payload: bytes = b""
    flags: Flag = Flag.NONE


def encode(frame: Frame) -> bytes:
    """The frame's bytes. Raises ValueError for a payload beyond 65,536 bytes."""
    if len(frame.payload) > MAX_PAYLOAD:
        raise ValueError(f"a frame's payload holds {MAX_PAYLOAD} bytes, not {len(frame.payload)}")
    head = _HEAD.pack(
        MAGIC, frame.nonce, frame.type, frame.flags, 0, frame.stream, len(frame.payload)
    )
    return head + _CHECKSUM.pack(zlib.crc32(head)) + frame.payload


def encode_message(nonce: int, kind: Type, stream: int, body: dict[str, Any]) -> bytes:
    """A JSON message in as many frames as it takes. Raises ValueError beyond 4 MiB."""
    data = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"a message holds {MAX_MESSAGE} bytes, not {len(data)}")
    frames = []
    for start in range(0, max(len(data), 1), MAX_PAYLOAD):
        more = Flag.MORE if start + MAX_PAYLOAD < len(data) else Flag.NONE
        part = data[start : start + MAX_PAYLOAD]
        frames.append(encode(Frame(nonce, kind, stream, part, more)))
    return b"".join(frames)


def _header(data: bytes | bytearray, at: int) -> tuple[int, Type, Flag, int, int] | None:
    """Nonce, type, flags, stream and length of the header at `at`; None when there is none."""
    magic, nonce, kind, flags, reserved, stream, length = _HEAD.unpack_from(data, at)
    if magic != MAGIC or reserved or length > MAX_PAYLOAD:
        return None
    (checksum,) = _CHECKSUM.unpack_from(data, at + _HEAD.size)
    if zlib.crc32(data[at : at + _HEAD.size]) != checksum:
        return None
    try:
        found = Type(kind)
    except ValueError:
        return None
    # As int: the complement of an IntFlag holds the known flags alone.
    if flags & ~int(_ALLOWED_FLAGS[found]):
        return None
    return nonce, found, Flag(flags), stream, length


class Decoder:
    """Takes bytes as they come, gives whole frames; skips what is no frame.

    It buffers less than one frame beyond what it was fed. `skipped` counts the bytes passed over.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.skipped = 0

    @property
    def buffered(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        self._buffer += data
        frames: list[Frame] = []
        at, end = 0, len(self._buffer)
        while True:
            start = self._next_magic(at)
            self.skipped += start - at
            at = start
            if end - at < HEADER_SIZE:
                break
            header = _header(self._buffer, at)
            if header is None:
                self.skipped += 1
                at += 1
                continue
            nonce, kind, flags, stream, length = header
            body = at + HEADER_SIZE
            if end - body < length:
                break
            payload = bytes(self._buffer[body : body + length])
            frames.append(Frame(nonce, kind, stream, payload, flags))
            at = body + length
        del self._buffer[:at]
        return frames

    def _next_magic(self, at: int) -> int:
        """Where the next frame may begin: a whole magic, or a part of one at the end."""
        found = self._buffer.find(MAGIC, at)
        if found >= 0:
            return found
        for kept in range(len(MAGIC) - 1, 0, -1):
            if len(self._buffer) - at >= kept and self._buffer.endswith(MAGIC[:kept]):
                return len(self._buffer) - kept
        return len(self._buffer)


def _too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[object] = []
        for item in level:
            if isinstance(item, dict):
                deeper.extend(item.values())
            elif isinstance(item, list):
                deeper.extend(item)
        if not deeper:
            return False
        level = deeper
    return True


def parse_json(data: bytes) -> dict[str, Any]:
    """The object in a message from the guest. Raises `AgentProtocolError`."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AgentProtocolError("the guest sent a message that is no JSON") from error
    if not isinstance(body, dict):
        raise AgentProtocolError("the guest sent a message that is no JSON object")
    if _too_deep(body):
        raise AgentProtocolError(f"the guest sent JSON nested deeper than {MAX_DEPTH}")
    return body


class Assembler:
    """Puts messages of several frames together, within limits on one and on all together."""

    def __init__(self, total_limit: int = 2 * MAX_MESSAGE) -> None:
        self._parts: dict[tuple[Type, int], bytearray] = {}
        self._total = 0
        self._total_limit = total_limit

    def add(self, frame: Frame) -> bytes | None:
        """The whole message with its last frame, else None. Raises `AgentProtocolError`."""
        key = (frame.type, frame.stream)
        more = bool(frame.flags & Flag.MORE)
        if not more and key not in self._parts:
            return frame.payload
        parts = self._parts.setdefault(key, bytearray())
        parts += frame.payload
        self._total += len(frame.payload)
        if len(parts) > MAX_MESSAGE or self._total > self._total_limit:
            raise AgentProtocolError("the guest sent a message that is too long")
        if len(self._parts) > 1024:
            raise AgentProtocolError("the guest began too many messages at once")
        if more:
            return None
        del self._parts[key]
        self._total -= len(parts)
        return bytes(parts)
