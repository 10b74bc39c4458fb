"""A writer of the cpio "newc" format that the kernel unpacks as initramfs.

Format: Documentation/driver-api/early-userspace/buffer-format.rst in Linux. Device nodes are
entries like any other, so that no root is needed; owners are 0, times are 0 and inode numbers
count up, so that the same entries give the same bytes.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One file of the archive; `mode` holds type and permissions as st_mode does.

    `data` is a file's content or a symbolic link's target.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(path: str, permissions: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | permissions)


def file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def char_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | permissions, device=(major, minor))


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _encode(entry: Entry, inode: int) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        inode,
        entry.mode,
        0,  # uid
        0,  # gid
        links,
        0,  # mtime
        len(entry.data),
        0,  # device of the file itself, major and minor
        0,
        *entry.device,
        len(name),
        0,  # checksum: unused by this variant
    )
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def archive(entries: list[Entry]) -> bytes:
    """The archive's bytes; folders must precede what lies in them.

    Raises ValueError for an absolute or repeated path.
    """
    seen: set[str] = set()
    parts: list[bytes] = []
    for number, entry in enumerate(entries, start=1):
        if entry.path.startswith("/") or entry.path in seen or not entry.path:
            raise ValueError(f"bad or repeated path in archive: {entry.path!r}")
        seen.add(entry.path)
        parts.append(_encode(entry, number))
    parts.append(_encode(Entry(_TRAILER, 0), 0))
    data = b"".join(parts)
    return data + b"\0" * (-len(data) % 512)
