"""Files by name, in a folder or in a tar archive."""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, Protocol

from hostlib.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ThawError,
)
from images import tar_format

PIECE: Final = 256 * 1024
MAX_MEMBERS: Final = 100_000
_MAX_LINKS: Final = 8
_COMPRESSED: Final = {
    b"\x1f\x8b": "gunzip",
    b"\x28\xb5": "unzstd",
    b"BZ": "bunzip2",
    b"\xfd7": "unxz",
}


class Files(Protocol):
    def pieces(self, name: str) -> Iterator[bytes]:
        """A file's bytes, `PIECE` at a time at most. Raises `NotFound`, `FailedPrecondition`."""
        ...


def read(files: Files, name: str, limit: int) -> bytes:
    """A whole file of `limit` bytes at most."""
    data = bytearray()
    for piece in files.pieces(name):
        data += piece
        if len(data) > limit:
            raise ResourceExhausted(f"{name} is larger than {limit} bytes")
    return bytes(data)


def open_file(path: str | Path) -> IO[bytes]:
    """A regular file, open for reading. Raises `NotFound`, `FailedPrecondition`."""
    try:
        # Not to wait for the other end of what is a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"there is no {path}") from error
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror}") from error
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise InvalidArgument(f"{path} is no file")
    return file


class Folder:
    """The files in a folder."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def pieces(self, name: str) -> Iterator[bytes]:
        with open_file(self._path / name) as file:
            while piece := file.read(PIECE):
                yield piece


class Archive:
    """The files in an uncompressed tar archive, which stays open as long as this lives.

    Raises `InvalidArgument` for one that is compressed or no archive, `ResourceExhausted` for one
    with too many members.
    """

    def __init__(self, file: IO[bytes], what: str) -> None:
        self._file = file
        self._what = what
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        head = file.read(4)
        if (tool := _COMPRESSED.get(head[:2])) is not None:
            raise InvalidArgument(f"{what} is compressed", hint=f"unpack it first: {tool}")
        file.seek(0)
        try:
            self._index()
        except ThawError as error:
            raise InvalidArgument(f"{what} is no usable tar archive: {error.message}") from error
        except (tarfile.TarError, ValueError, OverflowError, IndexError) as error:
            raise InvalidArgument(f"{what} is no usable tar archive: {error}") from error

    def _index(self) -> None:
        with tar_format.open_tar(self._file) as tar:
            count = 0
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]
                count += 1
                if count > MAX_MEMBERS:
                    raise ResourceExhausted(f"more than {MAX_MEMBERS} members")
                name = _normal(member.name)
                # The last of a name counts, as when it is unpacked.
                self._places.pop(name, None)
                self._links.pop(name, None)
                if member.issym():
                    self._links[name] = _normal(
                        posixpath.join(posixpath.dirname(name), member.linkname)
                    )
                elif member.islnk():
                    self._links[name] = _normal(member.linkname)
                elif member.isreg() and not member.issparse():
                    self._places[name] = (member.offset_data, member.size)

    def pieces(self, name: str) -> Iterator[bytes]:
        place = _normal(name)
        for _ in range(_MAX_LINKS):
            place = self._links.get(place, place)
        if place not in self._places:
            raise NotFound(f"{self._what} has no file {name[:200]}")
        offset, size = self._places[place]
        while size > 0:
            piece = os.pread(self._file.fileno(), min(size, PIECE), offset)
            if not piece:
                raise DataLoss(f"{self._what} ends within {name[:200]}")
            offset, size = offset + len(piece), size - len(piece)
            yield piece


def _normal(name: str) -> str:
    """A member's name below the archive's root; what leads out of it stays below it."""
    return posixpath.normpath("/" + name).lstrip("/")
