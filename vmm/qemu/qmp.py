"""The monitor: a thin layer over the `qemu.qmp` package with Thaw's errors and time limits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Final

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from hostlib.errors import DeadlineExceeded, Internal, Unavailable

COMMAND_TIMEOUT: Final = 30.0


class QmpFailed(Internal):
    """QEMU refused a command."""


class QmpGone(Unavailable):
    """The monitor's connection ended: QEMU is dying or dead."""


class Qmp:
    """One monitor connection. `close` is idempotent."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self._turn = asyncio.Lock()

    @classmethod
    async def connect(cls, sock: socket.socket, *, timeout: float = COMMAND_TIMEOUT) -> Qmp:
        """Negotiate on a connected socket, which the connection owns from here on."""
        client = QMPClient()
        try:
            async with asyncio.timeout(timeout):
                await client.connect(sock)
        except TimeoutError as error:
            sock.close()
            raise DeadlineExceeded(f"QEMU's monitor did not answer in {timeout:g} s") from error
        except QMPError as error:
            sock.close()
            raise QmpGone(f"QEMU's monitor did not come up: {error}") from error
        return cls(client)

    async def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        fd: int | None = None,
        timeout: float = COMMAND_TIMEOUT,
    ) -> Any:
        """Run one command; `fd` is sent along with it, and stays the caller's.

        Raises `QmpFailed` when QEMU refuses, `QmpGone` when it is gone, `DeadlineExceeded`.
        """
        try:
            async with self._turn, asyncio.timeout(timeout):
                if fd is not None:
                    self._client.send_fd_scm(fd)
                return await self._client.execute(command, arguments)
        except TimeoutError as error:
            raise DeadlineExceeded(f"QEMU did not carry out {command} in {timeout:g} s") from error
        except ExecuteError as error:
            raise QmpFailed(f"QEMU refused {command}: {error}") from error
        except (QMPError, EOFError, OSError, AssertionError) as error:
            # send_fd_scm asserts that there is a connection.
            raise QmpGone(f"QEMU is gone, {command} was not carried out") from error

    def listen(self, *events: str) -> contextlib.AbstractContextManager[EventListener]:
        """Collect events by name from now on; take them by ``await listener.get()``."""
        return self._client.listener(events)

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            # Whatever ended the connection is reported by the process's exit.
            await self._client.disconnect()
