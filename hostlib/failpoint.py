"""Named points at which a test makes the product fail, delay, wait, or die.

A failpoint costs one dictionary look-up while none is armed. They are armed by the environment
variable ``THAW_FAILPOINTS`` (``name=action;name=action``) or by `arm`, and by the file that
``THAW_FAILPOINTS_FILE`` names, which is read anew when it changes, so that a test can arm a point
in a process that already runs. Actions:

``error``, ``error(TEXT)``   raise `Injected`
``delay(SECONDS)``           sleep, without blocking the event loop
``hold``                     the same until the point is disarmed, or armed anew
``kill``                     SIGKILL this process
``N*ACTION``                 the first N times only

Each that fires is logged. Names are dotted, and say the place: ``restore.reseed``,
``pull.disk_full``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from dataclasses import dataclass
from typing import Final

from hostlib.errors import Internal, InvalidArgument

log = logging.getLogger(__name__)

ENV: Final = "THAW_FAILPOINTS"
ENV_FILE: Final = "THAW_FAILPOINTS_FILE"

_ACTION: Final = re.compile(r"(?:(\d+)\*)?(error|delay|hold|kill)(?:\(([^)]*)\))?")

_LOOK: Final = 0.01
"""Seconds between two looks at whether a point that holds is disarmed."""


class Injected(Internal):
    """The failure that an armed failpoint raises."""


@dataclass
class _Point:
    action: str
    argument: str
    remaining: int | None


_armed: dict[str, _Point] = {}
_file: str | None = None
_file_stamp: tuple[int, int] = (0, 0)


def parse(text: str) -> dict[str, _Point]:
    """The points that `text` arms. Raises `InvalidArgument` when it is malformed."""
    points: dict[str, _Point] = {}
    for item in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        name, _, spec = item.partition("=")
        match = _ACTION.fullmatch(spec.strip())
        if not name.strip() or match is None:
            raise InvalidArgument(
                f"bad failpoint {item!r}", hint="write NAME=[N*]error|delay(S)|hold|kill"
            )
        count, action, argument = match.groups()
        points[name.strip()] = _Point(action, argument or "", int(count) if count else None)
    return points


def arm(text: str) -> None:
    """Arm the points that `text` names, beside those armed already."""
    _armed.update(parse(text))


def disarm() -> None:
    """Disarm every point."""
    _armed.clear()


def load_environment() -> None:
    """Arm what the environment asks for; each process calls it once as it starts."""
    global _file
    if text := os.environ.get(ENV):
        arm(text)
    _file = os.environ.get(ENV_FILE)


def _refresh() -> None:
    global _file_stamp
    if _file is None:
        return
    try:
        found = os.stat(_file)
    except FileNotFoundError:
        stamp = (0, 0)
    else:
        stamp = (found.st_mtime_ns, found.st_ino)
    if stamp == _file_stamp:
        return
    _file_stamp = stamp
    _armed.clear()
    if stamp != (0, 0):
        with open(_file, encoding="utf-8") as source:
            arm(source.read())


def _take(name: str) -> _Point | None:
    _refresh()
    point = _armed.get(name)
    if point is None or point.remaining == 0:
        return None
    if point.remaining is not None:
        point.remaining -= 1
    log.warning("failpoint %s: %s", name, point.action)
    return point


def _fire(name: str, point: _Point) -> None:
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if point.action == "error":
        raise Injected(point.argument or f"failpoint {name} fired")


async def hit(name: str) -> None:
    """Pass the failpoint `name`; raises `Injected` where it is armed to fail."""
    if not _armed and _file is None:
        return
    if (point := _take(name)) is not None:
        if point.action == "delay":
            await asyncio.sleep(float(point.argument or 1))
        elif point.action == "hold":
            while _armed.get(name) is point:
                await asyncio.sleep(_LOOK)
                _refresh()
        else:
            _fire(name, point)


def hit_sync(name: str) -> None:
    """`hit` for code in a worker thread, or before any event loop; never delays, never holds."""
    if not _armed and _file is None:
        return
    if (point := _take(name)) is not None:
        _fire(name, point)
