"""Work that tells how far it is, as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")

MAX_QUEUE: Final = 256
"""A client that reads slowly loses messages of progress, never the last one."""


async def with_progress(
    work: Callable[[Callable[[T], None]], Coroutine[Any, Any, R]],
    own: asyncio.Queue[T] | None = None,
) -> AsyncIterator[T | tuple[R]]:
    """What `work` reports, then a tuple of its one result. `work` ends with its reader.

    In the queue `own`, `work` can put what must not be lost.
    """
    queue: asyncio.Queue[T] = own or asyncio.Queue(MAX_QUEUE)

    def report(item: T) -> None:
        if not queue.full():
            queue.put_nowait(item)

    task = asyncio.create_task(work(report))
    getter: asyncio.Task[T] | None = None
    try:
        while True:
            getter = asyncio.create_task(queue.get())
            await asyncio.wait({task, getter}, return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                yield getter.result()
                continue
            getter.cancel()
            break
        while not queue.empty():
            yield queue.get_nowait()
        yield (await task,)
    finally:
        for each in (task, getter):
            if each is not None and not each.done():
                each.cancel()
                await asyncio.wait({each})
