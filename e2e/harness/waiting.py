"""Waiting for facts, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(
    what: str, check: Callable[[], T | None], timeout: float = 30.0, *, pause: float = 0.02
) -> T:
    """The first true answer of `check`, which is asked every `pause` seconds. AssertionError,
    naming `what`, after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(pause)
