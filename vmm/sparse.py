"""Sparse files: their data, a copy that is as sparse as can be, and a digest of the data."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hostlib.errors import DataLoss

BLOCK: Final = 65536
_ZERO: Final = bytes(BLOCK)


def segments(descriptor: int, size: int) -> list[tuple[int, int]]:
    """The (start, end) of each piece of the file that is no hole."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        at = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        found.append((start, at))
    return found


def blocks(descriptor: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The place and bytes of each aligned block that holds anything but zeros.

    Raises `DataLoss` when the file is shorter than `size`.
    """
    last = -1
    for start, end in segments(descriptor, size):
        at = max(start - start % BLOCK, last)
        while at < end:
            data = os.pread(descriptor, min(BLOCK, size - at), at)
            if not data:
                raise DataLoss("a file ended before its recorded size")
            if data != _ZERO[: len(data)]:
                yield at, data
            at += len(data)
        last = at


def copy(source: int, target: int, size: int) -> str:
    """Copy `size` bytes between descriptors; zeros become holes. Blocking.

    The result is the digest that `digest` gives of either file: sha256 over the size, and place
    and bytes of each block that is not all zeros, wherever the file system keeps its holes.
    """
    total = hashlib.sha256(size.to_bytes(8, "little"))
    os.ftruncate(target, size)
    for at, data in blocks(source, size):
        total.update(at.to_bytes(8, "little"))
        total.update(data)
        view = memoryview(data)
        while view:
            written = os.pwrite(target, view, at)
            view, at = view[written:], at + written
    return total.hexdigest()


def digest(descriptor: int, size: int) -> str:
    """The digest that `copy` gives. Blocking."""
    total = hashlib.sha256(size.to_bytes(8, "little"))
    for at, data in blocks(descriptor, size):
        total.update(at.to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def clone(source: Path, target: Path) -> None:
    """Copy a sparse file to a new one, mode 0600. Blocking.

    Raises FileExistsError, OSError (ENOSPC).
    """
    with open(source, "rb") as reader:
        sink = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy(reader.fileno(), sink, os.fstat(reader.fileno()).st_size)
        except BaseException:
            target.unlink()
            raise
        finally:
            os.close(sink)
