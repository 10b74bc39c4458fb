"""Processes that are nobody's children here: known by pid and start time, watched by pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from hostlib import linux


def alive(pid: int, start_time: int) -> bool:
    """Whether this very process lives; a pid alone is used again."""
    return pid > 1 and linux.start_time(pid) == start_time


async def ensure_dead(pid: int, start_time: int, *, grace: float) -> None:
    """Wait `grace` seconds for the process to end, kill it then, and wait until it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # Only now does the descriptor pin the process that is looked at.
        if not alive(pid, start_time):
            return
        if not await _wait(descriptor, grace):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            await _wait(descriptor, 10.0)
    finally:
        os.close(descriptor)


async def _wait(descriptor: int, timeout: float) -> bool:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(timeout):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True
