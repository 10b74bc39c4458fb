"""What is common to a guest's streams: reading one whole, waiting for their end."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

from hostlib.errors import ThawError

log = logging.getLogger(__name__)

EXEC_CAP: Final = 16 * 1024 * 1024
"""Bytes of each output stream that an exec_sync returns; CRI's limit."""

DRAIN_TIMEOUT: Final = 5.0
"""Seconds for which output is awaited after a process ended: a child that lives on may hold its
pipes open for ever."""


class Readable(Protocol):
    """The reading side of an agent's stream."""

    async def read(self, limit: int = ...) -> bytes: ...

    def reset(self) -> None: ...


class Capture:
    """Collects a stream, at most `EXEC_CAP` bytes; the rest is read and dropped."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def run(self, stream: Readable) -> None:
        """Read `stream` to its end."""
        try:
            while data := await stream.read():
                self.data += data[: EXEC_CAP - len(self.data)]
        except ThawError as error:
            log.info("output of an exec ended: %s", error.message)


async def drain(tasks: list[asyncio.Task[None]]) -> None:
    """Wait until the readers have ended, at most `DRAIN_TIMEOUT`; those left are cancelled."""
    if not tasks:
        return
    _, left = await asyncio.wait(tasks, timeout=DRAIN_TIMEOUT)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
