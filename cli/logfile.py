"""Reads a container's log as the kubelet does.

A record is ``TIME stdout|stderr P|F CONTENT``; P means that the line goes on in the next record of
the same stream. What is given out are the bytes that the container wrote.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple

POLL: Final = 0.05
"""Seconds between two looks at a log that is followed."""
MAX_RECORD: Final = 64 * 1024
"""Bytes of a record, whose content has 16 KiB at most; what is longer is none."""

_CHUNK: Final = 256 * 1024


class Piece(NamedTuple):
    """Some output of one stream, cut anywhere."""

    stream: str
    content: bytes


class Record(NamedTuple):
    """A record; `content` ends with a newline unless the line goes on."""

    time: bytes
    stream: str
    partial: bool
    content: bytes


def parse(raw: bytes) -> Record | None:
    """One record, without its newline; None when it is none."""
    parts = raw.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr"):
        return None
    partial = parts[2] == b"P"
    return Record(parts[0], parts[1].decode(), partial, parts[3] + (b"" if partial else b"\n"))


class Selection:
    """Which records are shown: those of lines that begin at or after a time. It is told of each in
    its order."""

    def __init__(self, since: bytes = b"", within: Iterable[str] = ()) -> None:
        """`since` in the form of a record's time; lines of the streams in `within` have begun
        already, and are not shown."""
        self.since = since
        self._open = dict.fromkeys(within, False)

    @property
    def within(self) -> frozenset[str]:
        """The streams that are in the midst of a line."""
        return frozenset(self._open)

    def takes(self, record: Record) -> bool:
        # All times have the same form, and so the order of their texts.
        shown = self._open.get(record.stream, record.time >= self.since)
        if record.partial:
            self._open[record.stream] = shown
        else:
            self._open.pop(record.stream, None)
        return shown


def read(path: str, *, tail: int | None = None, since: bytes = b"") -> Iterator[Piece]:
    """What a log file holds: of its lines the last `tail`, those since a record's time."""
    with open(path, "rb", buffering=0) as source:
        yield from _pieces(source, _begin(source, tail, since), bytearray())


def follow(
    path: str, ended: Callable[[], bool], *, tail: int | None = None, since: bytes = b""
) -> Iterator[Piece]:
    """The same, and what comes, over rotations, until `ended` and nothing is left to read."""
    selection: Selection | None = None
    source: BinaryIO | None = None
    pending = bytearray()
    try:
        while True:
            last_round = ended()
            if source is None:
                try:
                    source = open(path, "rb", buffering=0)  # noqa: SIM115 - closed in the finally
                except FileNotFoundError:
                    if last_round:
                        return
                    time.sleep(POLL)
                    continue
                pending.clear()
                selection = selection or _begin(source, tail, since)
            assert selection is not None
            yield from _pieces(source, selection, pending)
            if _rotated(source.fileno(), path):
                # Nobody writes to the old file any more; what came after our look at it counts.
                yield from _pieces(source, selection, pending)
                source.close()
                source = None
                continue
            if last_round:
                return
            time.sleep(POLL)
    finally:
        if source is not None:
            source.close()


def _pieces(source: BinaryIO, selection: Selection, pending: bytearray) -> Iterator[Piece]:
    """What is shown of the rest of a file; `pending` keeps the record that is not complete."""
    while chunk := source.read(_CHUNK):
        *whole, rest = (bytes(pending) + chunk).split(b"\n")
        # The end of what is no record is none either.
        pending[:] = rest[-MAX_RECORD:]
        stream, content = "", bytearray()
        for record in filter(None, map(parse, whole)):
            if not selection.takes(record):
                continue
            if record.stream != stream:
                if content:
                    yield Piece(stream, bytes(content))
                stream, content = record.stream, bytearray()
            content += record.content
        if content:
            yield Piece(stream, bytes(content))


def _begin(source: BinaryIO, tail: int | None, since: bytes) -> Selection:
    """Goes to the first record of the last `tail` lines of a file, as it is now."""
    selection = Selection(since)
    if tail is None:
        return selection
    beginnings: deque[tuple[int, frozenset[str]]] = deque(maxlen=tail)
    offset, pending = 0, b""
    while chunk := source.read(_CHUNK):
        *whole, pending = (pending + chunk).split(b"\n")
        for raw in whole:
            record, within = parse(raw), selection.within
            if record and selection.takes(record) and record.stream not in within:
                beginnings.append((offset, within))
            offset += len(raw) + 1
        if len(pending) > MAX_RECORD:
            offset += len(pending) - MAX_RECORD
            pending = pending[-MAX_RECORD:]
    start, within = beginnings[0] if beginnings else (offset, selection.within)
    source.seek(start)
    return Selection(since, within)


def _rotated(descriptor: int, path: str) -> bool:
    """Whether `path` is another file by now. One that is gone may come again."""
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return False
    old = os.fstat(descriptor)
    return (old.st_dev, old.st_ino) != (now.st_dev, now.st_ino)
