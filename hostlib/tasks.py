"""Background tasks that nobody forgets, and single-flight calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Tasks:
    """Owns background tasks: keeps them alive, logs their failures, ends them together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` in the background; an error that it raises is logged."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background task %s failed: %s", task.get_name(), error, exc_info=error)

    async def wait(self, timeout: float) -> None:
        """Wait until the tasks of this moment have ended, `timeout` seconds at most."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=timeout)

    async def close(self) -> None:
        """Cancel every task and wait until each has ended. Idempotent."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class SingleFlight(Generic[T]):
    """Runs one call per key at a time; callers that come meanwhile share its result.

    A caller that is cancelled leaves the call running while others wait for it; when the last one
    is gone the call is cancelled.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, tuple[asyncio.Task[T], int]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `work`, started here or by a caller before this one."""
        task, waiters = self._flights.get(key, (None, 0))
        if task is None:
            task = asyncio.create_task(work(), name=f"single-flight {key}")
            task.add_done_callback(lambda done: self._forget(key, done))
        self._flights[key] = (task, waiters + 1)
        try:
            return await asyncio.shield(task)
        finally:
            found = self._flights.get(key)
            if found is not None and found[0] is task:
                left = found[1] - 1
                self._flights[key] = (task, left)
                if left == 0 and not task.done():
                    # Forgotten at once, so that a caller that comes now starts anew.
                    del self._flights[key]
                    task.cancel()

    def _forget(self, key: Hashable, task: asyncio.Task[T]) -> None:
        found = self._flights.get(key)
        if found is not None and found[0] is task:
            del self._flights[key]
        if not task.cancelled():
            task.exception()


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """Run blocking `work` in a worker thread; a cancelled caller waits for it to end.

    `asyncio.to_thread` lets a cancelled caller go while the thread still works on files that the
    caller is about to clean up.
    """
    future: Awaitable[T] = asyncio.get_running_loop().run_in_executor(None, work, *args)
    wrapped = asyncio.ensure_future(future)
    try:
        return await asyncio.shield(wrapped)
    except asyncio.CancelledError:
        await asyncio.wait([wrapped])
        raise
