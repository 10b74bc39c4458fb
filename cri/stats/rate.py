"""Processor use over a window, from a counter of processor time."""

from __future__ import annotations

from typing import Final

MIN_WINDOW: Final = 1_000_000_000
"""Nanoseconds: over less, the time that a reading takes is a part of what is read."""

Sample = tuple[int, int]
"""A time and a counter, both in nanoseconds."""


class Rate:
    """One counter's use. The window reaches back to the reading before this one that is at least
    `MIN_WINDOW` old, and for the first reading to where the counter began."""

    __slots__ = ("_base", "_last")

    def __init__(self) -> None:
        self._base: Sample | None = None
        self._last: Sample | None = None

    def add(self, at: int, counter: int, since: int) -> int | None:
        """Nanoseconds of processor time a second; None where nothing can be said. `since` is when
        the counter was 0, or 0 when that is not known."""
        if self._last is not None and at - self._last[0] >= MIN_WINDOW:
            self._base = self._last
            self._last = None
        if self._last is None:
            self._last = (at, counter)
        if self._base is None and 0 < since < at:
            self._base = (since, 0)
        if self._base is None:
            return None
        begun, before = self._base
        if at <= begun or counter < before:
            return None
        return (counter - before) * 1_000_000_000 // (at - begun)
