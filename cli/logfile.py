"""Reads a container's log as the kubelet does.

A line is ``TIME stdout|stderr P|F CONTENT``; P means that the line goes on in the next one of the
same stream.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

POLL: Final = 0.05
"""Seconds between two looks at a log that is followed."""


class Line(NamedTuple):
    """A piece of output; `content` ends with a newline unless the writer went on."""

    stream: str
    content: bytes


def parse(raw: bytes) -> Line | None:
    """One line of the log, without its newline; None when it is no log line."""
    parts = raw.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr"):
        return None
    return Line(parts[1].decode(), parts[3] + (b"" if parts[2] == b"P" else b"\n"))


def read(path: str, *, tail: int | None = None) -> Iterator[Line]:
    """The lines of a log file, or the last `tail` of them."""
    with open(path, "rb") as source:
        lines = filter(None, (parse(raw.rstrip(b"\n")) for raw in source))
        yield from lines if tail is None else deque(lines, maxlen=tail)


def follow(path: str, ended: Callable[[], bool], *, tail: int | None = None) -> Iterator[Line]:
    """The lines as they come, over rotations, until `ended` and nothing is left to read."""
    lines: deque[Line] = deque(maxlen=tail)
    opened = None
    begun = tail is None
    pending = b""
    try:
        while True:
            last_round = ended()
            if opened is None:
                try:
                    opened = open(path, "rb")  # noqa: SIM115 - closed in the outer finally
                except FileNotFoundError:
                    if last_round:
                        return
                    time.sleep(POLL)
                    continue
            while chunk := opened.read(1 << 16):
                *whole, pending = (pending + chunk).split(b"\n")
                found = filter(None, map(parse, whole))
                if begun:
                    yield from found
                else:
                    lines.extend(found)
            if not begun:
                yield from lines
                begun = True
            if _rotated(opened.fileno(), path):
                opened.close()
                opened = None
                continue
            if last_round:
                return
            time.sleep(POLL)
    finally:
        if opened is not None:
            opened.close()


def _rotated(descriptor: int, path: str) -> bool:
    """Whether `path` is another file by now, or gone with the old one read to its end."""
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return False
    old = os.fstat(descriptor)
    return (old.st_dev, old.st_ino) != (now.st_dev, now.st_ino)
