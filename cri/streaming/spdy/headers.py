"""Blocks of headers and their compression (SPDY/3.1, 2.6.10): one context for each direction."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from importlib import resources
from typing import Final

from cri.streaming.spdy.errors import WrongUse
from cri.streaming.spdy.limits import Limits

DICTIONARY: Final = resources.files(__package__).joinpath("header-dictionary.bin").read_bytes()
"""What both ends have "compressed" beforehand; its Adler-32 is in each connection's first block."""

_LENGTH: Final = struct.Struct(">I")
# A small window: our blocks are short, and deflate's usual one takes 256 KiB for each connection.
_WINDOW_BITS: Final = 11
_MEMORY_LEVEL: Final = 5


class BlockBroken(Exception):
    """The compression context is lost or the limits are passed: the connection cannot go on."""


class HeadersWrong(Exception):
    """The block is sound, but its headers are not allowed: the stream cannot go on."""


class HeaderEncoder:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._deflate = zlib.compressobj(
            wbits=_WINDOW_BITS, memLevel=_MEMORY_LEVEL, zdict=DICTIONARY
        )

    def encode(self, headers: Mapping[str, str]) -> bytes:
        """The compressed block. Raises `WrongUse`, and the context stays sound."""
        try:
            pairs = {
                name.lower().encode("latin-1"): value.encode("latin-1")
                for name, value in headers.items()
            }
        except UnicodeEncodeError as error:
            raise WrongUse("headers are Latin-1") from error
        parts = [_LENGTH.pack(len(pairs))]
        for name, value in pairs.items():
            parts += (_LENGTH.pack(len(name)), name, _LENGTH.pack(len(value)), value)
        block = b"".join(parts)
        if b"" in pairs or len(pairs) < len(headers):
            raise WrongUse("a header has no name, or the name of another one")
        if len(pairs) > self._limits.headers or len(block) > self._limits.header_block:
            raise WrongUse("a peer with the same limits would refuse so many headers")
        return self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


class HeaderDecoder:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)

    def decode(self, compressed: bytes | memoryview) -> dict[str, str]:
        """The headers in a block. Every block must come here, or the next is undecipherable.

        Inflates no more than a byte beyond the limit. Raises `BlockBroken` and `HeadersWrong`.
        """
        most = self._limits.header_block
        try:
            block = self._inflate.decompress(compressed, most + 1)
        except zlib.error as error:
            raise BlockBroken(f"a header block cannot be decompressed: {error}") from error
        if len(block) > most:
            raise BlockBroken(f"a header block is longer than {most} bytes")
        if self._inflate.eof:
            raise BlockBroken("the compression of headers was ended")
        return _parse(block, self._limits.headers)


def _parse(block: bytes, most: int) -> dict[str, str]:
    if len(block) < _LENGTH.size:
        raise BlockBroken("a header block is cut")
    (count,) = _LENGTH.unpack_from(block)
    if count > most:
        raise BlockBroken(f"a header block has more than {most} headers")
    headers: dict[str, str] = {}
    wrong = False
    at = _LENGTH.size
    for _ in range(count):
        name, at = _string(block, at)
        value, at = _string(block, at)
        text = name.decode("latin-1")
        wrong = wrong or not name or name != name.lower() or text in headers
        headers[text] = value.decode("latin-1")
    if at != len(block):
        raise BlockBroken("a header block has bytes left over")
    if wrong:
        raise HeadersWrong("a name of a header is empty, not lower case, or there twice")
    return headers


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    start = at + _LENGTH.size
    if start > len(block):
        raise BlockBroken("a header block is cut")
    (length,) = _LENGTH.unpack_from(block, at)
    if length > len(block) - start:
        raise BlockBroken("a header block is cut")
    return block[start : start + length], start + length
