"""Signals that end the command: all is undone on the way out, the exit code names the signal."""

from __future__ import annotations

import asyncio
import signal
import types
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

T = TypeVar("T")

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Interrupted(KeyboardInterrupt):
    """One of `ENDING` came."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def handled(handler: Callable[[int, types.FrameType | None], object]) -> Iterator[None]:
    """`handler` is called for the signals that end the command; what nohup or a shell has had
    ignored stays so."""
    old = {
        number: signal.signal(number, handler)
        for number in ENDING
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def interrupt(number: int, _frame: types.FrameType | None) -> None:
    """A handler that raises `Interrupted`."""
    raise Interrupted(number)


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; a signal cancels it, and raises `Interrupted` when it has ended."""
    received: list[int] = []

    async def cancellable() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("not in a task")

        def cancel(number: int, _frame: types.FrameType | None) -> None:
            received.append(number)
            loop.call_soon_threadsafe(task.cancel)

        with handled(cancel):
            return await work

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not received:
            raise
        raise Interrupted(received[0]) from None
