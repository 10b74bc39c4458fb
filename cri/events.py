"""Who listens to what happens to containers, and what waits for each of them.

A listener has a queue of its own, so that one which does not read holds up neither what happens nor
another listener: when its queue is full it is over, and what it missed it learns from the lists.
Messages are made once for all listeners, and not at all where nobody listens.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from hostlib.errors import ResourceExhausted

log = logging.getLogger(__name__)

M = TypeVar("M")

MAX_LISTENERS: Final = 128
MAX_WAITING: Final = 1000
"""Messages that wait for one listener."""


class Listener(Generic[M]):
    """One who listens; made by `Events.listen`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[M] = deque()
        self._news = asyncio.Event()
        self.behind = asyncio.Event()
        """Set once it fell so far behind that it gets nothing more."""

    def tell(self, message: M) -> None:
        if self.behind.is_set():
            return
        if len(self._waiting) >= self._most:
            # What waited is of no use without what is missing.
            self._waiting.clear()
            self.behind.set()
        else:
            self._waiting.append(message)
        self._news.set()

    async def next(self) -> M:
        """The next message. Raises `ResourceExhausted` for one that fell behind."""
        while not self._waiting:
            if self.behind.is_set():
                raise self.too_slow()
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    def too_slow(self) -> ResourceExhausted:
        return ResourceExhausted(
            f"more than {self._most} events waited for this listener, which does not read them",
            hint="list the pods and containers, then listen anew",
        )


class Events(Generic[M]):
    """All who listen."""

    def __init__(self, *, listeners: int = MAX_LISTENERS, waiting: int = MAX_WAITING) -> None:
        self._most, self._waiting = listeners, waiting
        self._listeners: set[Listener[M]] = set()

    def __len__(self) -> int:
        return len(self._listeners)

    @contextmanager
    def listen(self) -> Iterator[Listener[M]]:
        """A listener, told all that happens from now on to the end of the block.

        Raises `ResourceExhausted` where too many listen.
        """
        if len(self._listeners) >= self._most:
            raise ResourceExhausted(
                f"{self._most} clients listen to events", hint="end some of them first"
            )
        listener: Listener[M] = Listener(self._waiting)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def publish(self, make: Callable[[], M]) -> None:
        """Tell all listeners what `make` makes."""
        if not self._listeners:
            return
        message = make()
        for each in list(self._listeners):
            each.tell(message)
            if each.behind.is_set():
                log.warning("a listener to events fell behind and is ended")
                self._listeners.discard(each)
