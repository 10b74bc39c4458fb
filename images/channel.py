"""Bytes from the event loop to a worker thread, with back-pressure both ways."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Final

CAPACITY: Final = 4 * 1024 * 1024
"""Bytes held between the two; the download waits when the conversion is behind."""


class Channel:
    """`put`, `end` and `fail` belong to the event loop, `read` to one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._space = asyncio.Event()
        self._space.set()
        self._state = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._ended = False
        self._error: BaseException | None = None

    async def put(self, data: bytes) -> None:
        """Hand on `data`; waits while `CAPACITY` bytes are held."""
        await self._space.wait()
        with self._state:
            if self._error is not None or self._ended:
                return
            self._chunks.append(data)
            self._held += len(data)
            if self._held >= CAPACITY:
                self._space.clear()
            self._state.notify()

    def end(self) -> None:
        """No more bytes come. Idempotent."""
        with self._state:
            self._ended = True
            self._state.notify()

    def fail(self, error: BaseException) -> None:
        """Make the reader raise `error`, and let writers go. Idempotent."""
        with self._state:
            if self._error is None:
                self._error = error
            self._chunks.clear()
            self._space.set()
            self._state.notify()

    def read(self, size: int) -> bytes:
        """The next chunk, whatever `size` says; b"" at the end."""
        del size
        with self._state:
            while not self._chunks and not self._ended and self._error is None:
                self._state.wait()
            if self._error is not None:
                raise self._error
            if not self._chunks:
                return b""
            data = self._chunks.popleft()
            was_full = self._held >= CAPACITY
            self._held -= len(data)
            if was_full and self._held < CAPACITY:
                self._loop.call_soon_threadsafe(self._space.set)
            return data
