"""The tar format: a bounded reader on `tarfile`, and the writer of what sqfstar reads.

What is written is the plainest tar that can hold a layer: ustar headers, PAX records for what does
not fit them, and GNU's record for long link targets. sqfstar 4.5 parses nothing else of ours, which
spares us its gaps (no base-256 numbers below zero, no sparse maps needed, no ``hdrcharset``).
"""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Mapping
from typing import IO, Any, Final, Protocol, cast

from hostlib.errors import DataLoss, InvalidArgument, ResourceExhausted

BLOCK: Final = 512
READ: Final = 1024 * 1024
"""Bytes asked of the source at a time."""
MAX_EXTENSION: Final = 1024 * 1024
"""The most bytes of one PAX or long-name record, which is held in memory as a whole, and of all
global PAX records of an archive."""
MAX_HEADERS: Final = 4 * MAX_EXTENSION
"""The most bytes of all headers of one member, maps of sparse files among them."""

MAX_TIME: Final = 2**32 - 1
"""squashfs keeps seconds since the epoch in 32 unsigned bits."""
MAX_ID: Final = 2**32 - 2

_EXTENSIONS: Final = frozenset(
    (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )
)


class BoundedInfo(tarfile.TarInfo):
    """A member header, read within bounds; tarfile alone takes a damaged one for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> BoundedInfo:
        return _from_tarfile(cls, tarfile)

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """The member behind a PAX header. tarfile of Debian 12 parses it with regular expressions
        that take hours over a megabyte of digits (CVE-2024-6232), and no other thread runs then."""
        source = _forward(tar)
        records = _records(source.read(self._block(self.size))[: self.size])  # type: ignore[attr-defined]
        headers = dict(tar.pax_headers)
        headers |= dict(records)
        if self.type == tarfile.XGLTYPE:
            source.globals += self.size
            if source.globals > MAX_EXTENSION:
                raise ResourceExhausted("the layer is a bomb: global tar headers without end")
            tar.pax_headers = headers
        found = type(self).fromtarfile(tar)
        inner = cast("Any", found)
        if "GNU.sparse.map" in headers:
            self._proc_gnusparse_01(found, headers)  # type: ignore[attr-defined]
        elif "GNU.sparse.size" in headers:
            inner.sparse = list(
                zip(
                    (int(value) for key, value in records if key == "GNU.sparse.offset"),
                    (int(value) for key, value in records if key == "GNU.sparse.numbytes"),
                    strict=False,
                )
            )
        elif (headers.get("GNU.sparse.major"), headers.get("GNU.sparse.minor")) == ("1", "0"):
            self._proc_gnusparse_10(found, headers, tar)  # type: ignore[attr-defined]
        if self.type != tarfile.XGLTYPE:
            inner._apply_pax_info(headers, tar.encoding, tar.errors)
            found.offset = self.offset
            if "size" in headers:
                plain = found.isreg() or found.type not in tarfile.SUPPORTED_TYPES
                tar.offset = found.offset_data + (inner._block(found.size) if plain else 0)
        return found

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0:
            raise DataLoss(f"a tar header names a size of {self.size} bytes")
        if self.type in _EXTENSIONS and self.size > MAX_EXTENSION:
            raise ResourceExhausted(
                f"the layer is a bomb: a tar header of {self.size} bytes",
                hint=f"headers of up to {MAX_EXTENSION} bytes are read",
            )
        member = super()._proc_member(tar)  # type: ignore[misc]
        assert isinstance(member, tarfile.TarInfo)
        return member


def _records(data: bytes) -> list[tuple[str, str]]:
    """The records of a PAX header (POSIX pax, "pax Extended Header")."""
    found: list[tuple[str, str]] = []
    position = 0
    while position < len(data) and data[position]:
        digits, space, _ = data[position : position + 11].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[position + len(digits) + 1 : position + length]
        key, equals, value = record[:-1].partition(b"=")
        if position + length > len(data) or not key or not equals or record[-1:] != b"\n":
            raise DataLoss("the layer's tar archive is damaged: a PAX record is malformed")
        found.append(
            (key.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
        )
        position += length
    return found


def _forward(tar: tarfile.TarFile) -> _Forward:
    assert isinstance(tar.fileobj, _Forward)
    return tar.fileobj


def _from_tarfile(cls: type[BoundedInfo], tar: tarfile.TarFile) -> BoundedInfo:
    first = tar.offset == 0
    source = _forward(tar)
    outermost = source.budget is None
    if outermost:
        source.budget = MAX_HEADERS
    try:
        return super(BoundedInfo, cls).fromtarfile(tar)
    except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
        if first and tar.fileobj is not None and tar.fileobj.tell() == 0:
            raise InvalidArgument("the layer is empty: no tar archive") from None
        raise
    except tarfile.HeaderError as error:
        if first:
            raise InvalidArgument(
                f"the layer is no tar archive: {error}", hint="the image is broken: build it again"
            ) from error
        raise DataLoss(f"the layer's tar archive is damaged: {error}") from error
    except RecursionError as error:
        raise InvalidArgument("the layer's tar headers are nested without end") from error
    finally:
        if outermost:
            source.budget = None


class Readable(Protocol):
    def read(self, size: int) -> bytes: ...


class _Forward:
    """What tarfile needs of a file, on a stream that cannot go back.

    tarfile's own stream mode copies what is left of its buffer at each header.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._chunk = b""
        self._used = 0
        self._position = 0
        self.budget: int | None = None
        """How many bytes may still be read, while a header is."""
        self.globals = 0
        """Bytes of global PAX headers so far."""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise tarfile.StreamError("the archive leads backwards")
        while self._position < position:
            if not self._take(position - self._position):
                break
        return self._position

    def read(self, size: int) -> bytes:
        if self.budget is not None:
            self.budget -= size
            if self.budget < 0:
                raise ResourceExhausted(
                    "the layer is a bomb: the tar headers of one member do not end",
                    hint=f"headers of up to {MAX_HEADERS} bytes are read",
                )
        first = self._take(size)
        if len(first) == size or not first:
            return first
        parts, missing = [first], size - len(first)
        while missing and (part := self._take(missing)):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _take(self, size: int) -> bytes:
        if self._used == len(self._chunk):
            self._chunk, self._used = self._source.read(READ), 0
        part = self._chunk[self._used : self._used + size]
        self._used += len(part)
        self._position += len(part)
        return part


def open_tar(source: Readable) -> tarfile.TarFile:
    """A forward-only reader; names keep bytes that are no UTF-8 as surrogates."""
    return tarfile.TarFile(
        fileobj=cast("IO[bytes]", _Forward(source)),
        tarinfo=BoundedInfo,
        encoding="utf-8",
        errors="surrogateescape",
    )


def padding(size: int) -> bytes:
    """What fills the last block of `size` bytes."""
    return b"\0" * (-size % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    # The length counts its own digits (POSIX pax, "pax Extended Header").
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(
    name: bytes, kind: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, link: bytes,
    device: tuple[int, int],
) -> bytes:  # fmt: skip
    header = struct.pack(
        "100s8s8s8s12s12s8s1s100s8s32s32s8s8s167x",
        name,
        b"%07o\0" % mode,
        b"%07o\0" % uid,
        b"%07o\0" % gid,
        b"%011o\0" % size,
        b"%011o\0" % mtime,
        b" " * 8,
        kind,
        link,
        b"ustar\x0000",
        b"",
        b"",
        b"%07o\0" % device[0],
        b"%07o\0" % device[1],
    )
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _extension(name: bytes, kind: bytes, data: bytes) -> bytes:
    return _block(name, kind, 0, 0, 0, len(data), 0, b"", (0, 0)) + data + padding(len(data))


def encode(
    name: bytes,
    kind: bytes,
    *,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: float = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: Mapping[str, bytes] | None = None,
) -> bytes:
    """The header blocks of one member; its data and `padding` follow."""
    uid, gid = (min(max(value, 0), MAX_ID) for value in (uid, gid))
    # A PAX record's time may be inf or nan.
    seconds = int(min(max(mtime, 0), MAX_TIME)) if mtime == mtime else 0
    major, minor = (min(max(number, 0), 8**7 - 1) for number in device)
    records = b""
    if len(name) > 100:
        records += _record(b"path", name)
    for key, value in ((b"uid", uid), (b"gid", gid)):
        if value >= 8**7:
            records += _record(key, b"%d" % value)
    if size >= 8**11:
        records += _record(b"size", b"%d" % size)
    for attribute, content in sorted((xattrs or {}).items()):
        records += _record(b"SCHILY.xattr." + attribute.encode("utf-8", "surrogateescape"), content)
    extended = b""
    if len(link) > 100:
        # sqfstar takes leading "/", "./" and "../" off a PAX linkpath, not off GNU's long link.
        extended += _extension(b"././@LongLink", b"K", link + b"\0")
    if records:
        extended += _extension(b"pax", b"x", records)
    return extended + _block(
        name[:100],
        kind,
        mode & 0o7777,
        uid % 8**7,
        gid % 8**7,
        size % 8**11,
        seconds,
        link[:100],
        (major, minor),
    )
