"""A registry that misbehaves on request, for a daemon that knows it by its loopback address."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Self

from images.tests.fake_registry import Answer, FakeRegistry, Request, running

__all__ = ["Answer", "FaultyRegistry", "Request", "times"]


class FaultyRegistry:
    """The image tests' registry on an event loop in a thread; a context manager."""

    def __init__(self) -> None:
        self.registry = FakeRegistry()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faulty registry")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        async with running() as registry:
            self.registry = registry
            self._up.set()
            await self._stop.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive()

    def reset(self) -> None:
        """Behave, and hold nothing."""
        self.registry.behave = lambda _: None
        self.registry.blobs.clear()
        self.registry.manifests.clear()
        self.registry.requests.clear()

    @property
    def image(self) -> str:
        """The reference of its one repository."""
        return f"{self.registry.host}/team/app:latest"


def times(count: int, part: str, answer: Answer) -> Callable[[Request], Answer | None]:
    """Give `answer` to the first `count` requests whose path holds `part`."""
    left = [count]

    def behave(request: Request) -> Answer | None:
        if part not in request.path or not left[0]:
            return None
        left[0] -= 1
        return answer

    return behave
