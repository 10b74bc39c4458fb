"""The user's terminal and standard streams."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import termios
import threading
import tty
from collections.abc import AsyncGenerator, Iterator
from typing import Final

from cri.streaming.remote_command import TerminalSize
from hostlib.errors import FailedPrecondition

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2

_READ: Final = 64 * 1024


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """The terminal passes every key on, also Ctrl-C, and shows nothing by itself; on the way out it
    is as it was. What is no terminal is left alone."""
    try:
        before = termios.tcgetattr(fd)
    except termios.error:
        yield
        return
    # Neither waits for output nor drops what was typed ahead.
    tty.setraw(fd, termios.TCSANOW)
    try:
        yield
    finally:
        # It may have hung up.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSANOW, before)


def size() -> TerminalSize | None:
    """The size of the terminal that we write to, or else read from."""
    for fd in (STDOUT, STDIN):
        with contextlib.suppress(OSError):
            columns, lines = os.get_terminal_size(fd)
            if columns and lines:
                return TerminalSize(columns, lines)
    return None


async def sizes() -> AsyncGenerator[TerminalSize, None]:
    """The terminal's size, and again after each change."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    loop.add_signal_handler(signal.SIGWINCH, changed.set)
    try:
        while True:
            changed.clear()
            if (now := size()) is not None:
                yield now
            await changed.wait()
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


class DetachKeys:
    """Finds Ctrl-P Ctrl-Q in what is typed, as in Docker."""

    FIRST: Final = 0x10
    SECOND: Final = 0x11

    def __init__(self) -> None:
        self._held = False
        self.pressed = False

    def feed(self, data: bytes) -> bytes:
        """What is to be passed on: all but the keys. A Ctrl-P at the end waits for what follows."""
        out = bytearray()
        for byte in data:
            if self._held and byte == self.SECOND:
                self.pressed = True
                break
            if self._held:
                out.append(self.FIRST)
            self._held = byte == self.FIRST
            if not self._held:
                out.append(byte)
        return bytes(out)


async def read(fd: int) -> bytes:
    """What can be read; empty at the end. The descriptor stays blocking: others may share it."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(fd, ready.set)
    except PermissionError:
        # epoll takes no files, which never block.
        await asyncio.sleep(0)
    else:
        try:
            await ready.wait()
        finally:
            loop.remove_reader(fd)
    try:
        return os.read(fd, _READ)
    except BlockingIOError:
        # Another process that shares the descriptor was faster, and has made it non-blocking.
        return await read(fd)
    except OSError:
        # A terminal that hung up.
        return b""


class Output:
    """Writes to a descriptor from a thread: a reader that does not read holds up nothing else."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]] | None] = (
            queue.SimpleQueue()
        )
        self._loop = asyncio.get_running_loop()
        # At the end of the command nobody waits for it.
        threading.Thread(target=self._run, name=f"output {fd}", daemon=True).start()

    async def write(self, data: bytes) -> None:
        """Returns when all is written. Raises `BrokenPipeError`, `FailedPrecondition`."""
        done = self._loop.create_future()
        self._queue.put((data, done))
        try:
            await done
        except BrokenPipeError:
            raise
        except OSError as error:
            name = "stderr" if self._fd == STDERR else "stdout"
            raise FailedPrecondition(f"{name} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Ends the thread, when it has written what it was given."""
        self._queue.put(None)

    def _run(self) -> None:
        while work := self._queue.get():
            data, done = work
            view = memoryview(data)
            failed: OSError | None = None
            try:
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError as error:
                failed = error
            try:
                self._loop.call_soon_threadsafe(_settle, done, failed)
            except RuntimeError:
                # The loop has ended: so has the command.
                return


def _settle(done: asyncio.Future[None], failed: OSError | None) -> None:
    if done.done():
        return
    if failed is None:
        done.set_result(None)
    else:
        done.set_exception(failed)
