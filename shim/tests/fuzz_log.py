"""A container's log writer under atheris: ``python -m shim.tests.fuzz_log CORPUS... [OPTION...]``.

Run by `make fuzz`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from shim import log
from shim.log import LogWriter, Splitter, StreamName, _short_lines

LINE: Final = re.compile(rb"(\S+) (stdout|stderr) ([PF]) ([^\n]*)\n")
NOW: Final = 1
MAX_CONTENT: Final = 64
STREAMS: Final[tuple[StreamName, StreamName]] = ("stdout", "stderr")


class Disk:
    """A disk with so many bytes of room; everything fits where `room` is None."""

    def __init__(self) -> None:
        self.files = [bytearray()]
        self.room: int | None = None

    def write(self, _descriptor: int, data: bytes) -> int:
        done = len(data)
        if self.room is not None:
            done = min(done, self.room)
            self.room -= done
            if not done:
                raise OSError(errno.ENOSPC, "No space left on device")
        self.files[-1] += data[:done]
        return done

    def open(self, _path: str, _flags: int, _mode: int) -> int:
        self.files.append(bytearray())
        return os.dup(0)


def steps(given: bytes) -> Iterator[tuple[int, int, bytes]]:
    """A kind, a number and bytes each: 0 and 1 say the bytes, 2 many of one, 3 as many as a line
    may have or nearly, 4 is the disk's room, 5 ends its shortness, 6 rotates."""
    while len(given) >= 2:
        kind, number = given[0], given[1]
        if kind % 8 < 2:
            yield kind, number, given[2 : 2 + number]
            given = given[2 + number :]
        else:
            yield kind, number, b""
            given = given[2:]


def said(kind: int, number: int, data: bytes) -> bytes:
    match kind % 8:
        case 2:
            return b"m" * number
        case 3:
            return b"n" * (MAX_CONTENT - 8 + number % 16) + b"\n" * (number >> 7)
        case _:
            return data


def lines(data: bytes) -> list[bytes]:
    """The log's lines; each is whole and none is too long."""
    found, position = [], 0
    while position < len(data):
        match = LINE.match(data, position)
        assert match is not None, data[position : position + 80]
        assert len(match[4]) <= MAX_CONTENT
        found.append(match[0])
        position = match.end()
    return found


def content(found: list[bytes], stream: StreamName) -> bytes:
    parts = [match for line in found if (match := LINE.match(line)) and match[2] == stream.encode()]
    return b"".join(match[4] + (b"\n" if match[3] == b"F" else b"") for match in parts)


@contextlib.contextmanager
def on(disk: Disk) -> Iterator[None]:
    """The log's module sees this disk, a clock that stands, and lines of few bytes: their bounds
    are met more often."""
    changes = (
        (os, "write", disk.write),
        (os, "open", disk.open),
        (time, "time_ns", _now),
        (log, "MAX_CONTENT", MAX_CONTENT),
    )
    saved = [(where, name, getattr(where, name)) for where, name, _ in changes]
    for change in changes:
        setattr(*change)
    try:
        yield
    finally:
        for change in saved:
            setattr(*change)


def _now() -> int:
    return NOW


def one(given: bytes) -> None:
    """Every byte once while there is room; else whole lines, in order, of those that were said."""
    disk = Disk()
    with on(disk):
        written, offered, short, dropped = _run(given, disk)
    if not short:
        heard = lines(b"".join(bytes(file) for file in disk.files))
        for name in STREAMS:
            assert content(heard, name) == written[name]
        assert heard == offered
        assert not dropped
        return
    left = deque(offered)
    for file in disk.files:
        # A line that was cut where the file was rotated stays so.
        whole = bytes(file[: file.rfind(b"\n") + 1])
        for line in lines(whole):
            while left and left[0] != line:
                left.popleft()
            assert left, line
            left.popleft()
    assert dropped <= sum(map(len, offered))


def _run(given: bytes, disk: Disk) -> tuple[dict[StreamName, bytearray], list[bytes], bool, int]:
    """What was written, the lines that this makes, whether room was short, what was dropped."""
    written = {name: bytearray() for name in STREAMS}
    splitters = {name: Splitter(name) for name in STREAMS}
    offered: list[bytes] = []
    short = False
    writer = LogWriter("0.log")
    for kind, number, data in steps(given):
        match kind % 8:
            case 4:
                disk.room, short = number << (kind >> 4), True
            case 5:
                disk.room = None
            case 6:
                writer.reopen()
            case _:
                name = STREAMS[kind >> 7]
                text = said(kind, number, data)
                written[name] += text
                offered += lines(splitters[name].feed(text, NOW))
                writer.write(name, text)
    disk.room = None
    writer.close()
    for name in STREAMS:
        offered += lines(splitters[name].finish(NOW))
    return written, offered, short, writer.dropped


def main() -> None:
    import atheris

    logging.disable()
    for function in (
        Splitter.feed,
        Splitter.finish,
        LogWriter._append,
        LogWriter._lose,
        _short_lines,
    ):
        atheris.instrument_func(function)
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
