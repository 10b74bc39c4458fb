"""Decompression of layers, as a pull: bytes in, bytes out, bounded steps.

The first bytes decide the format; a media type that says otherwise is refused, since either the
manifest or the blob lies.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import IO, Final, Literal, Protocol, cast

import zstandard

from hostlib.errors import DataLoss, InvalidArgument

Format = Literal["gzip", "zstd", "none"]

STEP: Final = 1024 * 1024
"""The most bytes that one `Decompressed.read` returns: a bomb is met a megabyte at a time."""

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class Source(Protocol):
    """Where compressed bytes come from; b"" at the end."""

    def read(self, size: int) -> bytes: ...


def sniff(head: bytes) -> Format:
    """The format by the magic number at the start of the stream."""
    if head.startswith(_GZIP_MAGIC):
        return "gzip"
    # A zstd stream may begin with a skippable frame (RFC 8878, section 3.1.2).
    if head.startswith(_ZSTD_MAGIC) or (
        len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    ):
        return "zstd"
    return "none"


def expected(media_type: str) -> Format:
    """The format that a layer's media type promises. Raises `InvalidArgument` for other types."""
    if media_type.endswith(("tar.gzip", "tar+gzip")):
        return "gzip"
    if media_type.endswith(("tar.zstd", "tar+zstd")):
        return "zstd"
    if media_type.endswith(".tar"):
        return "none"
    raise InvalidArgument(
        f"layer of media type {media_type[:200]!r} is no file system layer",
        hint="only tar layers, plain or compressed by gzip or zstd, make a container's root",
    )


class Decompressed:
    """The uncompressed stream. `read` raises `DataLoss` for damaged input, and
    `InvalidArgument` when the format is not the one `promised`."""

    def __init__(self, source: Source, promised: Format | None) -> None:
        self._source = source
        self._promised = promised
        self._pending = b""
        self._read: Callable[[], bytes] | None = None
        self._gzip = zlib.decompressobj(wbits=31)
        self._gzip_started = False

    def read(self, size: int = STEP) -> bytes:
        """Up to `STEP` bytes; b"" at the end of the stream."""
        del size
        if self._read is None:
            self._read = self._open()
        return self._read()

    def _open(self) -> Callable[[], bytes]:
        head = b""
        while len(head) < 4 and (more := self._source.read(STEP)):
            head += more
        self._pending = head
        found = sniff(head)
        if self._promised is not None and found != self._promised:
            raise InvalidArgument(
                f"the layer's media type promises {self._promised}, its bytes are {found}",
                hint="the image is broken: build or push it again",
            )
        if found == "gzip":
            return self._read_gzip
        if found == "zstd":
            reader = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(
                cast("IO[bytes]", _Rest(self)), read_across_frames=True
            )
            return lambda: self._read_zstd(reader)
        return self._next

    def _next(self) -> bytes:
        if self._pending:
            data, self._pending = self._pending[:STEP], self._pending[STEP:]
            return data
        return self._source.read(STEP)

    def _read_gzip(self) -> bytes:
        try:
            while True:
                # At a member's end zlib may leave what follows in both, tail and unused data.
                data = (b"" if self._gzip.eof else self._gzip.unconsumed_tail) or self._next()
                if not data:
                    if not self._gzip_started or self._gzip.eof:
                        return b""
                    # All input is in, and zlib may still hold output back.
                    out = self._gzip.decompress(b"", STEP)
                    if not out and not self._gzip.eof:
                        raise DataLoss("the layer's gzip stream ends too early")
                    if out:
                        return out
                    continue
                if self._gzip.eof:
                    self._gzip = zlib.decompressobj(wbits=31)
                self._gzip_started = True
                out = self._gzip.decompress(data, STEP)
                if self._gzip.eof:
                    # Members may follow one another (RFC 1952, section 2.2).
                    self._pending = self._gzip.unused_data + self._pending
                    if self._pending and not self._pending.strip(b"\0"):
                        self._pending = b""
                if out:
                    return out
        except zlib.error as error:
            raise DataLoss(f"the layer's gzip stream is damaged: {error}") from error

    def _read_zstd(self, reader: zstandard.ZstdDecompressionReader) -> bytes:
        try:
            return reader.read(STEP)
        except zstandard.ZstdError as error:
            raise DataLoss(f"the layer's zstd stream is damaged: {error}") from error


class _Rest:
    def __init__(self, outer: Decompressed) -> None:
        self._outer = outer

    def read(self, size: int = -1) -> bytes:
        del size
        return self._outer._next()
