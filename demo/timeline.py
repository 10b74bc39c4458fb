"""Prints what happens, step by step, with the time that each step took."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_NAME_WIDTH: Final = 44


def _colour(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if sys.stdout.isatty() else text


class Timeline:
    """Each line: when the step began, its name, a bar, and how long it took."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._live = sys.stdout.isatty()

    def heading(self, text: str) -> None:
        print(f"\n{_colour('1', text)}", flush=True)

    def note(self, text: str) -> None:
        """A remark on the step before."""
        for line in text.splitlines():
            print(f"{'':10}{_colour('2', '| ' + line)}", flush=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; a step that raises is shown as failed."""
        begun = time.monotonic()
        if self._live:
            print(f"{begun - self._begun:7.2f} s  {name} ...", end="", flush=True)
        try:
            yield
        except BaseException:
            self._finish(name, begun, _colour("31", "FAILED"))
            raise
        self._finish(name, begun, "")

    def _finish(self, name: str, begun: float, mark: str) -> None:
        took = time.monotonic() - begun
        # One block for each doubling over a millisecond: what is fast and what is slow both show.
        blocks = max(1, min(16, int(took * 1000).bit_length()))
        clear = "\r\x1b[2K" if self._live else ""
        bar = _colour("36", "#" * blocks)
        amount = f"{took * 1000:8.1f} ms" if took < 10 else f"{took:8.1f} s "
        print(
            f"{clear}{begun - self._begun:7.2f} s  {name:<{_NAME_WIDTH}} {amount}  {bar} {mark}",
            flush=True,
        )

    def progress(self, name: str, fraction: float) -> None:
        """Redraw the running step as a progress bar; where nothing is redrawn, do nothing."""
        if not self._live:
            return
        width = max(10, min(40, shutil.get_terminal_size().columns - 50))
        filled = int(width * max(0.0, min(1.0, fraction)))
        bar = "#" * filled + "." * (width - filled)
        print(f"\r\x1b[2K{'':10}{name[:30]:<30} [{bar}]", end="", flush=True)

    def total(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun
