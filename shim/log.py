"""Container logs in the form that the kubelet reads.

A line of the log is ``RFC3339Nano SP stdout|stderr SP P|F SP content LF``. Content has at most
16 KiB; a longer line of the container is split, each piece but its last tagged P. A last line
without a newline is tagged P, as containerd does, so that the parts give the exact bytes again.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import Final, Literal

from hostlib.errors import FailedPrecondition

log = logging.getLogger(__name__)

MAX_CONTENT: Final = 16 * 1024
"""Bytes of content in one line; kubelet and containerd agree on it."""

StreamName = Literal["stdout", "stderr"]

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


def timestamp(now_ns: int) -> bytes:
    """`now_ns`, nanoseconds since the epoch, as RFC 3339 with nanoseconds in UTC."""
    seconds, nanoseconds = divmod(now_ns, 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{stamp}.{nanoseconds:09d}Z".encode()


def _short_lines(data: bytes) -> int:
    """The length of a beginning of `data` that is whole lines of at most 16 KiB."""
    position = 0
    while (end := data.rfind(b"\n", position, position + MAX_CONTENT + 1)) >= 0:
        position = end + 1
    return position


class Splitter:
    """Cuts one stream of bytes into log lines; holds at most 16 KiB of an unfinished line."""

    def __init__(self, stream: StreamName) -> None:
        self._name = stream.encode()
        self._held = b""

    def feed(self, data: bytes, now_ns: int) -> bytes:
        """The log lines that `data` completes."""
        data = self._held + data
        stamp = timestamp(now_ns)
        full = b"%b %b F " % (stamp, self._name)
        partial = b"%b %b P " % (stamp, self._name)
        out = bytearray()
        position = _short_lines(data)
        if position:
            # Nearly all output: one pass, whatever the number of lines.
            out += full + data[: position - 1].replace(b"\n", b"\n" + full) + b"\n"
        while True:
            end = data.find(b"\n", position, position + MAX_CONTENT + 1)
            if end >= 0:
                out += full + data[position : end + 1]
                position = end + 1
            elif len(data) - position > MAX_CONTENT:
                out += partial + data[position : position + MAX_CONTENT] + b"\n"
                position += MAX_CONTENT
            else:
                break
        self._held = data[position:]
        return bytes(out)

    def finish(self, now_ns: int) -> bytes:
        """The unfinished last line, if there is one."""
        held, self._held = self._held, b""
        return b"%b %b P %b\n" % (timestamp(now_ns), self._name, held) if held else b""


class LogWriter:
    """The log file of one container.

    Writes append directly: the page cache takes them without blocking. A full disk costs lines,
    never the container: what does not fit is dropped with one message, a line that was cut is
    completed first when there is room again.
    """

    def __init__(self, path: str) -> None:
        """Open or create the file. Raises `FailedPrecondition` when that is not possible."""
        self._path = path
        self._descriptor = _open(path)
        self._splitters = {name: Splitter(name) for name in ("stdout", "stderr")}
        self._torn = b""
        self.dropped = 0
        """Bytes lost to a full or broken disk."""

    def write(self, stream: StreamName, data: bytes) -> None:
        """Log what the container wrote to `stream`."""
        self._append(self._splitters[stream].feed(data, time.time_ns()))

    def finish(self, stream: StreamName) -> None:
        """The stream ended: log its unfinished last line."""
        self._append(self._splitters[stream].finish(time.time_ns()))

    def reopen(self) -> None:
        """Go on in a new file after the old one was renamed.

        Raises `FailedPrecondition`, goes on in the old file and makes no new one where it cannot.
        """
        fresh = _open(self._path)
        old, self._descriptor = self._descriptor, fresh
        # What completes a cut line belongs to the old file.
        if self._torn:
            self._torn = b""
        if old >= 0:
            os.close(old)

    def close(self) -> None:
        """Flush unfinished lines and close the file. Idempotent."""
        if self._descriptor < 0:
            return
        self.finish("stdout")
        self.finish("stderr")
        os.close(self._descriptor)
        self._descriptor = -1

    def _append(self, lines: bytes) -> None:
        if not lines or self._descriptor < 0:
            return
        data = memoryview(self._torn + lines)
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            self._lose(bytes(data), written, error)
        else:
            self._torn = b""

    def _lose(self, data: bytes, written: int, error: OSError) -> None:
        if not self.dropped:
            wrong = os.strerror(error.errno or errno.EIO)
            log.error("log %s: %s; lines are dropped until it can be written", self._path, wrong)
        torn = b""
        at_line_start = written == 0 or data[written - 1] == 0x0A
        if not at_line_start or (written == 0 and self._torn):
            torn = data[written : data.index(b"\n", written) + 1]
        self._torn = torn
        self.dropped += len(data) - written - len(torn)


def _open(path: str) -> int:
    try:
        return os.open(path, _FLAGS, 0o640)
    except OSError as error:
        raise FailedPrecondition(
            f"log file {path} cannot be written: {error.strerror}",
            hint="the pod's log_directory must exist and be writable",
        ) from error
