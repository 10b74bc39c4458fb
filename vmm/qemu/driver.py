"""QEMU's process: started as a child that dies with its parent, watched, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hostlib import linux
from hostlib.errors import FailedPrecondition
from vmm.qemu import confine

RING: Final = 64 * 1024
"""Bytes kept of the console, and of standard error: the last ones."""

_ENVIRONMENT: Final = {
    "PATH": "/usr/bin:/bin",
    "LC_ALL": "C.UTF-8",
    # One heap without glib's slices on top: an idle VM holds 1 MiB less, and is no slower.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TOP_PAD_": "4096",
    "G_SLICE": "always-malloc",
}


class Ring:
    """The last `limit` bytes of what was written."""

    def __init__(self, limit: int = RING) -> None:
        self._limit = limit
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > self._limit:
            del self._data[: len(self._data) - self._limit]

    def __bytes__(self) -> bytes:
        return bytes(self._data)


@dataclass(frozen=True)
class ExitReason:
    """How QEMU ended; `returncode` is negative for a signal, as subprocess has it."""

    returncode: int
    text: str

    @property
    def clean(self) -> bool:
        """QEMU ended by itself without an error: the guest powered off."""
        return self.returncode == 0


def describe_exit(returncode: int, stderr: bytes) -> str:
    # What QEMU says before an abort is the reason for it.
    tail = stderr.decode(errors="replace").strip().splitlines()[-3:]
    told = f": {' '.join(tail)}" if tail else ""
    if returncode < 0:
        with contextlib.suppress(ValueError):
            return f"QEMU was killed by {signal.Signals(-returncode).name}{told}"
    return f"QEMU ended with code {returncode}{told}"


class Process:
    """A running QEMU. `exited` is done when it has ended and was reaped."""

    def __init__(
        self, child: subprocess.Popen[bytes], console: socket.socket, console_limit: int
    ) -> None:
        self._child = child
        self._loop = asyncio.get_running_loop()
        self._console_socket: socket.socket | None = console
        self.console = Ring(console_limit)
        self.stderr = Ring()
        self.exited: asyncio.Future[ExitReason] = self._loop.create_future()
        self._pidfd = os.pidfd_open(child.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)
        console.setblocking(False)
        self._loop.add_reader(console, self._on_console)
        assert child.stderr
        os.set_blocking(child.stderr.fileno(), False)
        self._loop.add_reader(child.stderr.fileno(), self._on_stderr)

    @property
    def pid(self) -> int:
        return self._child.pid

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        confinement: confine.Confinement,
        pass_fds: Sequence[int],
        console: socket.socket,
        console_limit: int = RING,
    ) -> Process:
        """Start QEMU. Call it on the main thread: the parent-death signal is tied to the thread.

        Raises `FailedPrecondition` when QEMU is not there, or cannot be confined.
        """
        parent = os.getpid()
        told, tell = os.pipe()

        def child_setup() -> None:
            try:
                confinement.enter()
                # QEMU asks for huge pages in TCG's code buffer, which a small guest fills sparsely.
                linux.prctl(linux.PR_SET_THP_DISABLE, 1)
                # After the change of uid, which clears it.
                linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            except OSError as error:
                os.write(tell, str(error).encode())
                raise
            if os.getppid() != parent:
                os._exit(127)

        try:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
                preexec_fn=child_setup,
                bufsize=0,
            )
        except FileNotFoundError as error:
            raise FailedPrecondition(
                f"{argv[0]} is not installed", hint="apt-get install qemu-system-x86"
            ) from error
        except (PermissionError, subprocess.SubprocessError) as error:
            os.set_blocking(told, False)
            with contextlib.suppress(BlockingIOError):
                if why := os.read(told, 4096).decode(errors="replace"):
                    raise FailedPrecondition(
                        f"{argv[0]} cannot be confined: {why}",
                        hint=confine.HINT,
                    ) from error
            raise FailedPrecondition(f"{argv[0]} cannot be started: {error}") from error
        finally:
            os.close(told)
            os.close(tell)
        return cls(child, console, console_limit)

    def _on_console(self) -> None:
        if self._console_socket is None:
            return
        try:
            data = self._console_socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.console.write(data)
            return
        self._loop.remove_reader(self._console_socket)
        self._console_socket.close()
        self._console_socket = None

    def _on_stderr(self) -> None:
        stream = self._child.stderr
        if stream is None or stream.closed:
            return
        data = stream.read(65536)
        if data:
            self.stderr.write(data)
        elif data is not None:
            self._loop.remove_reader(stream.fileno())
            stream.close()

    def _on_exit(self) -> None:
        returncode = self._child.wait()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._on_stderr()
        stream = self._child.stderr
        if stream is not None and not stream.closed:
            self._loop.remove_reader(stream.fileno())
            stream.close()
        self._on_console()
        if self._console_socket is not None:
            self._loop.remove_reader(self._console_socket)
            self._console_socket.close()
            self._console_socket = None
        if not self.exited.done():
            self.exited.set_result(
                ExitReason(returncode, describe_exit(returncode, bytes(self.stderr)))
            )

    def kill(self) -> None:
        if not self.exited.done():
            self._child.kill()

    async def stop(self) -> ExitReason:
        """Kill QEMU and wait for its end. Idempotent."""
        self.kill()
        return await asyncio.shield(self.exited)
