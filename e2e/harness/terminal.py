"""A program on a terminal of its own, driven as a person would: keys, and what is on the screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Self


class Terminal:
    """A pseudo-terminal with a program, which is killed at the end of the ``with`` block."""

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        width: int = 80,
        height: int = 24,
    ) -> None:
        self.fd, other = pty.openpty()
        self.screen = b""
        self.resize(width, height)
        self.before = termios.tcgetattr(other)
        self._other = other
        self.process = subprocess.Popen(
            # SIGWINCH comes from the controlling terminal. Not made by a function for the forked
            # child: gRPC starts its threads anew there, and at times ends it for what it finds.
            ["setsid", "--ctty", *argv],
            stdin=other,
            stdout=other,
            stderr=other,
            env=dict(environment),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self._other)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def see(self, text: str, timeout: float = 60) -> None:
        """Waits until `text` was written, and forgets all up to it."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self.screen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come: {self.screen!r}"
            if select.select([self.fd], [], [], left)[0]:
                self.screen += os.read(self.fd, 65536)
        self.screen = self.screen.partition(text.encode())[2]

    def end(self, timeout: float = 60) -> int:
        """The program's exit code, once it has ended by itself."""
        return self.process.wait(timeout)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was before the program."""
        return termios.tcgetattr(self._other) == self.before
