"""How the `thaw` command shows things: tables, sizes, ages; data on stdout, all else on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from hostlib.errors import ThawError


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def as_json(messages: Iterable[Message]) -> str:
    """Messages as a JSON array; fields are named as in the protocol."""
    items: list[Any] = [
        json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        for message in messages
    ]
    return json.dumps(items, indent=2)


def size(count: int) -> str:
    """Bytes, for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def age(created_ns: int, now_ns: int | None = None) -> str:
    """How long ago, for people."""
    seconds = max(0, (now_ns if now_ns is not None else time.time_ns()) - created_ns) // 10**9
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def short(identifier: str) -> str:
    """The first characters of an id, enough to name it by."""
    return identifier.removeprefix("sha256:")[:12]


def error(problem: ThawError) -> None:
    """Tell what failed, and what to do about it."""
    print(f"error: {problem.message}", file=sys.stderr)
    if problem.hint:
        print(f"hint: {problem.hint}", file=sys.stderr)


class Progress:
    """Lines that are drawn over on a terminal; elsewhere each phase is printed once."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._phases: dict[str, str] = {}
        self._drawn = 0
        self._live = sys.stderr.isatty()

    def update(self, key: str, phase: str, text: str) -> None:
        """Set the line `key`; `phase` tells when it is worth printing where nothing is redrawn."""
        self._lines[key] = text
        if self._live:
            self._draw()
        elif self._phases.get(key) != phase:
            print(text, file=sys.stderr, flush=True)
        self._phases[key] = phase

    def _draw(self) -> None:
        out = f"\x1b[{self._drawn}F" if self._drawn else ""
        out += "".join(f"\x1b[2K{line}\n" for line in self._lines.values())
        self._drawn = len(self._lines)
        print(out, end="", file=sys.stderr, flush=True)


def bar(current: int, total: int, width: int = 24) -> str:
    """A progress bar; without a total, just the amount."""
    if total <= 0:
        return size(current)
    filled = min(width, width * current // total)
    return f"[{'#' * filled}{'.' * (width - filled)}] {min(100, 100 * current // total):3d} %"


def warn(text: str) -> None:
    """Something to know that stops nothing."""
    print(f"warning: {text}", file=sys.stderr)


def note(text: str) -> None:
    """What is neither data nor a problem."""
    print(text, file=sys.stderr)
