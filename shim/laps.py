"""How long the steps of one piece of work take, one after the other."""

from __future__ import annotations

import time


class Laps:
    """`timings` has the nanoseconds of each step that has ended, in order."""

    def __init__(self) -> None:
        self.timings: dict[str, int] = {}
        self._begun = time.monotonic_ns()

    def lap(self, step: str) -> None:
        """The step ends now; the next begins."""
        now = time.monotonic_ns()
        self.timings[step] = now - self._begun
        self._begun = now

    def note(self, timings: dict[str, int]) -> None:
        """Steps that were timed elsewhere, within the step that is under way."""
        self.timings |= timings
