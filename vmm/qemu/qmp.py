"""QEMU's monitor: the little of QMP that a VM needs, on one connection.

QMP is JSON, a line for each message (QEMU's ``docs/interop/qmp-spec``). The `qemu.qmp` package
speaks it too, and would cost each pod more memory of its own: its objects lie in pages that a shim
shares with the zygote for as long as it does not touch them (row `idle_shim` of the benchmark).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any, Final

from hostlib.errors import DeadlineExceeded, Internal, Unavailable

COMMAND_TIMEOUT: Final = 30.0

MAX_MESSAGE: Final = 1 << 20
"""Bytes of one message; QEMU's longest that is ever asked for has some hundred."""

_MAX_EVENTS: Final = 256
"""Events that wait for one listener; more are dropped, oldest first."""

Message = dict[str, Any]


class QmpFailed(Internal):
    """QEMU refused a command."""


class QmpGone(Unavailable):
    """The monitor's connection ended: QEMU is dying or dead."""


class Qmp:
    """One monitor connection. `close` is idempotent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._turn = asyncio.Lock()
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._listeners: list[tuple[tuple[str, ...], asyncio.Queue[Message]]] = []
        self._number = 0
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = False
        self._reader = asyncio.create_task(self._read(), name="QMP")

    @classmethod
    async def connect(cls, sock: socket.socket, *, timeout: float = COMMAND_TIMEOUT) -> Qmp:
        """Negotiate on a connected socket, which the connection owns from here on."""
        sock.setblocking(False)
        qmp = cls(sock)
        try:
            async with asyncio.timeout(timeout):
                await qmp._greeted
                await qmp.execute("qmp_capabilities", timeout=timeout)
        except TimeoutError as error:
            await qmp.close()
            raise DeadlineExceeded(f"QEMU's monitor did not answer in {timeout:g} s") from error
        except QmpGone as error:
            await qmp.close()
            raise QmpGone(f"QEMU's monitor did not come up: {error.message}") from error
        except BaseException:
            await qmp.close()
            raise
        return qmp

    async def execute(
        self,
        command: str,
        arguments: Message | None = None,
        *,
        fd: int | None = None,
        timeout: float = COMMAND_TIMEOUT,
    ) -> Any:
        """Run one command; `fd` is sent along with it, and stays the caller's.

        Raises `QmpFailed` when QEMU refuses, `QmpGone` when it is gone, `DeadlineExceeded`.
        """
        self._number += 1
        number = self._number
        message = {"execute": command, "arguments": arguments or {}, "id": number}
        try:
            async with self._turn, asyncio.timeout(timeout):
                if self._ended:
                    raise ConnectionResetError
                answer = self._answers[number] = asyncio.get_running_loop().create_future()
                await self._send(json.dumps(message).encode() + b"\n", fd)
                told = await answer
        except TimeoutError as error:
            raise DeadlineExceeded(f"QEMU did not carry out {command} in {timeout:g} s") from error
        except OSError as error:
            raise QmpGone(f"QEMU is gone, {command} was not carried out") from error
        finally:
            self._answers.pop(number, None)
        if "error" in told:
            refusal = told["error"]
            said = refusal.get("desc") if isinstance(refusal, dict) else refusal
            raise QmpFailed(f"QEMU refused {command}: {said}")
        return told.get("return")

    @contextlib.contextmanager
    def listen(self, *events: str) -> Iterator[asyncio.Queue[Message]]:
        """Collect events by name from now on; take them by ``await queue.get()``."""
        entry = (events, asyncio.Queue[Message](_MAX_EVENTS))
        self._listeners.append(entry)
        try:
            yield entry[1]
        finally:
            self._listeners.remove(entry)

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.wait([self._reader])
        self._sock.close()

    async def _send(self, data: bytes, fd: int | None) -> None:
        # The descriptor goes with the first byte. QEMU reads as fast as commands are answered, and
        # one is sent at a time, so the buffer always has room for that byte.
        sent = socket.send_fds(self._sock, [data], [] if fd is None else [fd])
        if sent < len(data):
            await asyncio.get_running_loop().sock_sendall(self._sock, data[sent:])

    async def _read(self) -> None:
        pending = b""
        try:
            while piece := await asyncio.get_running_loop().sock_recv(self._sock, 65536):
                *lines, pending = (pending + piece).split(b"\n")
                for line in lines:
                    if line.strip():
                        self._take(json.loads(line))
                if len(pending) > MAX_MESSAGE:
                    raise ValueError("a message without an end")
        except (OSError, ValueError, RecursionError):
            # Whatever ended the connection is reported by the process's exit.
            pass
        finally:
            self._end()

    def _take(self, message: Any) -> None:
        if not isinstance(message, dict):
            raise ValueError("a message that is no object")
        if "QMP" in message:
            if not self._greeted.done():
                self._greeted.set_result(None)
        elif "event" in message:
            for names, queue in self._listeners:
                if message["event"] in names:
                    if queue.full():
                        queue.get_nowait()
                    queue.put_nowait(message)
        else:
            number = message.get("id")
            answer = self._answers.get(number) if isinstance(number, int) else None
            if answer is not None and not answer.done():
                answer.set_result(message)

    def _end(self) -> None:
        self._ended = True
        gone = QmpGone("the connection ended")
        if not self._greeted.done():
            self._greeted.set_exception(gone)
            # Nobody may be waiting any more.
            self._greeted.exception()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError("QEMU's monitor hung up"))
                answer.exception()
