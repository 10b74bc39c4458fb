"""Reads the squashfs files that our own converter wrote: tables and data uncompressed.

Why not a tool: `sqfs2tar` streams a whole layer, so that a merge would pass over every layer twice
and hold all names; `unsquashfs -pf` of Debian 12 loses extended attributes; PySquashfsImage fails
on names that are no UTF-8. Here a directory is read when it is looked at, and file content is not
read at all but named by its place.

The format is the kernel's (Documentation/filesystems/squashfs.rst; fs/squashfs/squashfs_fs.h),
version 4.0. Everything is checked against the file's bounds; what does not fit is `DataLoss`.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from hostlib.errors import DataLoss

_SUPER: Final = struct.Struct("<IIIIIHHHHHHQQQQQQQQ")
_MAGIC: Final = 0x73717368
_BLOCK: Final = 8192
"""What each block of a table holds, the last one aside."""
_PLAIN: Final = 0x8000
"""Set in the two bytes before a table's block that is stored uncompressed."""
_DATA_PLAIN: Final = 1 << 24
_NONE: Final = 0xFFFFFFFF
_XATTR_PREFIXES: Final = {0: b"user.", 1: b"trusted.", 2: b"security."}
_XATTR_ELSEWHERE: Final = 0x100

DIRECTORY: Final = 1
FILE: Final = 2
SYMLINK: Final = 3
CHARACTER: Final = 5
_KINDS: Final = {
    1: stat.S_IFDIR, 2: stat.S_IFREG, 3: stat.S_IFLNK, 4: stat.S_IFBLK, 5: stat.S_IFCHR,
    6: stat.S_IFIFO, 7: stat.S_IFSOCK,
}  # fmt: skip
_EXTENDED: Final = 7
"""An extended inode's type is its basic one's and this."""

_HEAD: Final = struct.Struct("<HHHHII")
_FIELDS: Final = {
    1: struct.Struct("<IIHHI"),  # block, links, size, offset, parent
    2: struct.Struct("<IIII"),  # start, fragment, offset, size
    3: struct.Struct("<II"),  # links, length of the target
    4: struct.Struct("<II"),  # links, device
    5: struct.Struct("<II"),
    6: struct.Struct("<I"),  # links
    7: struct.Struct("<I"),
    8: struct.Struct("<IIIIHHI"),  # links, size, block, parent, indexes, offset, xattrs
    9: struct.Struct("<QQQIIII"),  # start, size, holes, links, fragment, offset, xattrs
    10: struct.Struct("<II"),
    11: struct.Struct("<III"),  # links, device, xattrs
    12: struct.Struct("<III"),
    13: struct.Struct("<II"),  # links, xattrs
    14: struct.Struct("<II"),
}


class Entry(NamedTuple):
    """A name in a directory, and where its inode is. `kind` is the inode's basic type."""

    name: bytes
    kind: int
    place: int


class Extent(NamedTuple):
    """A run of a file's content: `length` bytes at `offset`, or zeros where that is None."""

    offset: int | None
    length: int


@dataclass(frozen=True, slots=True)
class Inode:
    """What an inode says. `mode` has the type's bits; `number` is the same for hard links."""

    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    number: int
    links: int = 1
    size: int = 0
    """Bytes of content, or of a directory's listing."""
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: int = _NONE
    start: int = 0
    offset: int = 0
    fragment: int = _NONE
    blocks: tuple[int, ...] = ()


class Squashfs:
    """One file, open. A context manager. Every method raises `DataLoss` for a damaged file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._data = mmap.mmap(self.descriptor, 0, prot=mmap.PROT_READ)
        except (ValueError, OSError) as error:
            os.close(self.descriptor)
            raise self._damaged("it is empty") from error
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        found = _SUPER.unpack(self._bytes(0, _SUPER.size))
        magic, major, minor, used = found[0], found[9], found[10], found[12]
        if (magic, major, minor) != (_MAGIC, 4, 0) or used > len(self._data):
            raise self._damaged("it has no sound superblock")
        self._block_size, self._ids = found[3], found[8]
        self._root, self._id_table, self._xattr_table = found[11], found[13], found[14]
        self._inodes, self._folders, self._fragments = found[15], found[16], found[17]
        if not 4096 <= self._block_size <= 1024 * 1024:
            raise self._damaged("its block size is impossible")

    def close(self) -> None:
        self._data.close()
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _damaged(self, why: str) -> DataLoss:
        return DataLoss(
            f"the layer {self._path.name} is damaged: {why}",
            hint="remove the image and pull it again",
        )

    def _bytes(self, offset: int, length: int) -> bytes:
        data = self._data[offset : offset + length]
        if len(data) != length:
            raise self._damaged("it leads beyond its end")
        return data

    def _table(self, table: int, position: int, length: int) -> bytes:
        """`length` bytes at a position in a table, counted without the blocks' two-byte heads."""
        parts = []
        while length:
            block, inside = divmod(position, _BLOCK)
            place = table + block * (_BLOCK + 2)
            head = int.from_bytes(self._bytes(place, 2), "little")
            there = (head & ~_PLAIN) - inside
            if not head & _PLAIN or there <= 0:
                raise self._damaged("a table is compressed or too short")
            taken = min(length, there)
            parts.append(self._bytes(place + 2 + inside, taken))
            position += taken
            length -= taken
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @staticmethod
    def _position(block: int, offset: int) -> int:
        """A reference (a block's distance from the table, a place within it) as a position."""
        return block // (_BLOCK + 2) * _BLOCK + offset

    def _indexed(self, table: int, number: int, size: int) -> bytes:
        """Element `number` of a table whose blocks are found through a list of pointers."""
        block, inside = divmod(number * size, _BLOCK)
        where = int.from_bytes(self._bytes(table + 8 * block, 8), "little")
        return self._table(where, inside, size)

    def _owner(self, index: int) -> int:
        if index >= self._ids:
            raise self._damaged("an inode has no owner")
        return int.from_bytes(self._indexed(self._id_table, index, 4), "little")

    @property
    def root(self) -> Inode:
        return self.inode(self._root)

    def inode(self, place: int, expected: int = DIRECTORY) -> Inode:
        """The inode at a place that the superblock or an `Entry` names, of the kind it names."""
        position = self._position(place >> 16, place & 0xFFFF)
        kind, mode, uid, gid, mtime, number = _HEAD.unpack(
            self._table(self._inodes, position, _HEAD.size)
        )
        if kind not in _FIELDS:
            raise self._damaged(f"an inode of type {kind}")
        position += _HEAD.size
        fields = _FIELDS[kind].unpack(self._table(self._inodes, position, _FIELDS[kind].size))
        position += _FIELDS[kind].size
        basic = kind - _EXTENDED if kind > _EXTENDED else kind
        if basic != expected:
            raise self._damaged("a name and its inode differ")
        more = self._more(kind, basic, fields, position)
        return Inode(basic, _KINDS[basic] | mode, self._owner(uid), self._owner(gid), mtime, number,
                     **more)  # fmt: skip

    def _more(
        self, kind: int, basic: int, fields: tuple[int, ...], position: int
    ) -> dict[str, Any]:
        extended = kind != basic
        if basic == DIRECTORY:
            if extended:
                links, size, start, _, _, offset, xattrs = fields
            else:
                start, links, size, offset, _ = fields
                xattrs = _NONE
            # The size counts "." and "..", which are not stored, as three bytes.
            return {"links": links, "size": max(size - 3, 0), "start": start, "offset": offset,
                    "xattrs": xattrs}  # fmt: skip
        if basic == FILE:
            links, xattrs = 1, _NONE
            if extended:
                start, size, _, links, fragment, offset, xattrs = fields
            else:
                start, fragment, offset, size = fields
            count = size // self._block_size if fragment != _NONE else -(-size // self._block_size)
            if count * 4 > len(self._data):
                raise self._damaged("a file is larger than it can be")
            blocks = struct.unpack(f"<{count}I", self._table(self._inodes, position, 4 * count))
            return {"links": links, "size": size, "start": start, "offset": offset,
                    "fragment": fragment, "blocks": blocks, "xattrs": xattrs}  # fmt: skip
        if basic == SYMLINK:
            links, length = fields
            if length > 65536:
                raise self._damaged("a symbolic link is too long")
            target = self._table(self._inodes, position, length)
            xattrs = _NONE
            if extended:
                xattrs = int.from_bytes(self._table(self._inodes, position + length, 4), "little")
            return {"links": links, "target": target, "xattrs": xattrs}
        found: dict[str, Any] = {"links": fields[0], "xattrs": fields[-1] if extended else _NONE}
        if basic in (4, 5):
            # The kernel's new_decode_dev (include/linux/kdev_t.h).
            device = fields[1]
            found["device"] = (device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00)
        return found

    def entries(self, folder: Inode) -> Iterator[Entry]:
        """The names in a directory, in the order of their bytes."""
        position = self._position(folder.start, folder.offset)
        end = position + folder.size
        while position < end:
            count, block, _ = struct.unpack("<III", self._table(self._folders, position, 12))
            position += 12
            for _ in range(count + 1):
                if position >= end:
                    raise self._damaged("a directory leads beyond its end")
                offset, _, kind, length = struct.unpack(
                    "<HhHH", self._table(self._folders, position, 8)
                )
                name = self._table(self._folders, position + 8, length + 1)
                if b"/" in name or b"\0" in name or name in (b".", b".."):
                    raise self._damaged("a directory holds a name that cannot be")
                position += 8 + len(name)
                yield Entry(name, kind, block << 16 | offset)

    def xattrs(self, inode: Inode) -> dict[str, bytes]:
        """The extended attributes, by their full names."""
        if inode.xattrs == _NONE or self._xattr_table == 2**64 - 1:
            return {}
        keys, ids = struct.unpack("<QI", self._bytes(self._xattr_table, 12))
        if inode.xattrs >= ids:
            raise self._damaged("extended attributes that are nowhere")
        place, count, _ = struct.unpack(
            "<QII", self._indexed(self._xattr_table + 16, inode.xattrs, 16)
        )
        position = self._position(place >> 16, place & 0xFFFF)
        found: dict[str, bytes] = {}
        for _ in range(count):
            kind, length = struct.unpack("<HH", self._table(keys, position, 4))
            name = self._table(keys, position + 4, length)
            position += 4 + length
            (size,) = struct.unpack("<I", self._table(keys, position, 4))
            at = position + 4
            position = at + size
            if kind & _XATTR_ELSEWHERE:
                # An equal value was stored before, and is named by its place.
                (place,) = struct.unpack("<Q", self._table(keys, at, 8))
                at = self._position(place >> 16, place & 0xFFFF) + 4
                size = int.from_bytes(self._table(keys, at - 4, 4), "little")
            prefix = _XATTR_PREFIXES.get(kind & ~_XATTR_ELSEWHERE)
            if prefix is None or size > 65536:
                raise self._damaged("an extended attribute that cannot be")
            full = (prefix + name).decode("utf-8", "surrogateescape")
            found[full] = self._table(keys, at, size)
        return found

    def extents(self, file: Inode) -> Iterator[Extent]:
        """Where a file's content lies, in order; neighbours are one."""
        left, place = file.size, file.start
        run: Extent | None = None
        for block in file.blocks:
            length = min(left, self._block_size)
            if block and (not block & _DATA_PLAIN or block & ~_DATA_PLAIN != length):
                raise self._damaged("file content is compressed")
            left -= length
            offset = place if block else None
            place += length if block else 0
            if run is not None and (run.offset is None) == (offset is None):
                run = Extent(run.offset, run.length + length)
                continue
            if run is not None:
                yield self._checked(run)
            run = Extent(offset, length)
        if run is not None:
            yield self._checked(run)
        if left:
            fragment = self._indexed(self._fragments, file.fragment, 16)
            start, size, _ = struct.unpack("<QII", fragment)
            if not size & _DATA_PLAIN or file.offset + left > size & ~_DATA_PLAIN:
                raise self._damaged("a fragment does not fit")
            yield self._checked(Extent(start + file.offset, left))

    def _checked(self, extent: Extent) -> Extent:
        if extent.offset is not None and extent.offset + extent.length > len(self._data):
            raise self._damaged("file content lies beyond its end")
        return extent

    def content(self, extent: Extent) -> bytes:
        """The bytes of an extent, in memory: for short ones."""
        if extent.offset is None:
            return bytes(extent.length)
        return self._bytes(extent.offset, extent.length)
