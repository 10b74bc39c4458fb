"""Cuts the stream of bytes into frames. DATA is passed on as it comes, control frames whole."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cri.streaming.spdy.frames import HEADER_SIZE, MAX_LENGTH, VERSION, FrameType

_HEADER: Final = struct.Struct(">II")
_CONTROL: Final = 1 << 31
_KNOWN: Final = frozenset(FrameType)


class FrameError(Exception):
    """What follows cannot be read: the connection cannot go on."""


@dataclass(frozen=True, slots=True)
class ControlFrame:
    kind: FrameType
    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class DataPiece:
    """A part of a DATA frame of `length` bytes; it is empty for an empty frame alone."""

    stream_id: int
    flags: int
    length: int
    data: memoryview
    first: bool
    last: bool


class FrameReader:
    """Buffers less than one control frame, and no DATA."""

    def __init__(self, control_limit: int) -> None:
        self._limit = control_limit
        self._held = bytearray()
        self._needed = HEADER_SIZE
        self._control: tuple[FrameType, int] | None = None
        self._data: tuple[int, int, int] | None = None
        self._left = 0
        self._skipping = 0

    @property
    def within_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._held or self._control or self._data or self._skipping)

    def feed(self, view: memoryview) -> Iterator[ControlFrame | DataPiece]:
        """The frames in `view`, which is of bytes. Raises `FrameError`, and is of no use then."""
        at, end = 0, len(view)
        while at < end:
            if self._data is not None:
                taken = min(self._left, end - at)
                yield self._piece(view[at : at + taken])
                at += taken
            elif self._skipping:
                taken = min(self._skipping, end - at)
                self._skipping -= taken
                at += taken
            else:
                taken = min(self._needed - len(self._held), end - at)
                self._held += view[at : at + taken]
                at += taken
                if len(self._held) == self._needed:
                    yield from self._whole()

    def _whole(self) -> Iterator[ControlFrame | DataPiece]:
        """`_held` is a header, or the payload of a control frame."""
        if self._control is not None:
            yield self._take_control()
            return
        first, second = _HEADER.unpack(self._held)
        self._held.clear()
        flags, length = second >> 24, second & MAX_LENGTH
        if not first & _CONTROL:
            self._data = (first, flags, length)
            self._left = length
            if not length:
                yield self._piece(memoryview(b""))
            return
        kind = first & 0xFFFF
        if kind not in _KNOWN:
            # The specification (2.2.1) has unknown types ignored.
            self._skipping = length
            return
        if first >> 16 & 0x7FFF != VERSION:
            raise FrameError(f"a control frame is of version {first >> 16 & 0x7FFF}")
        if length > self._limit:
            raise FrameError(f"a control frame is longer than {self._limit} bytes")
        self._control = (FrameType(kind), flags)
        self._needed = length
        if not length:
            yield self._take_control()

    def _take_control(self) -> ControlFrame:
        assert self._control is not None
        frame = ControlFrame(*self._control, bytes(self._held))
        self._held.clear()
        self._needed = HEADER_SIZE
        self._control = None
        return frame

    def _piece(self, data: memoryview) -> DataPiece:
        assert self._data is not None
        stream_id, flags, length = self._data
        first = self._left == length
        self._left -= len(data)
        last = not self._left
        if last:
            self._data = None
        return DataPiece(stream_id, flags, length, data, first, last)
