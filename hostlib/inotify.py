"""inotify(7) for one event loop: who watches a folder is called when its entries change."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from typing import Final

ATTRIB: Final = 0x4
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
_ONLYDIR: Final = 0x01000000
_OVERFLOW: Final = 0x4000
_ENTRIES: Final = ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | _ONLYDIR

_HEADER: Final = struct.Struct("iIII")
_BUFFER: Final = 65536

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """One instance. Raises OSError when the host gives no more (EMFILE), or no more watches."""

    def __init__(self) -> None:
        self._descriptor = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._read)

    def watch(self, folder: str, changed: Callable[[], None]) -> int:
        """Call `changed` for each burst of changes to the folder's entries; the watch's number."""
        number = _check(_libc.inotify_add_watch(self._descriptor, folder.encode(), _ENTRIES))
        self._callbacks[number] = changed
        return number

    def forget(self, number: int) -> None:
        """End a watch. Idempotent."""
        if self._callbacks.pop(number, None) is not None:
            _libc.inotify_rm_watch(self._descriptor, number)

    def close(self) -> None:
        """End all of it. Idempotent."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
        self._callbacks.clear()

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _BUFFER)
        except BlockingIOError:
            return
        changed: set[int] = set()
        at = 0
        while at < len(data):
            number, mask, _, length = _HEADER.unpack_from(data, at)
            at += _HEADER.size + length
            if mask & _OVERFLOW:
                changed |= set(self._callbacks)
            changed.add(number)
        for number in changed:
            if (callback := self._callbacks.get(number)) is not None:
                callback()


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
