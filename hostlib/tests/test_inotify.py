from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hostlib.inotify import Inotify


async def test_who_watches_is_called(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    inotify = Inotify()
    heard, other = asyncio.Event(), asyncio.Event()
    try:
        number = inotify.watch(str(first), heard.set)
        inotify.watch(str(second), other.set)
        (first / "x").touch()
        await asyncio.wait_for(heard.wait(), 10)
        assert not other.is_set()
        inotify.forget(number)
        inotify.forget(number)
        heard.clear()
        (first / "y").touch()
        (second / "link").symlink_to("z")
        await asyncio.wait_for(other.wait(), 10)
        assert not heard.is_set()
        with pytest.raises(NotADirectoryError):
            inotify.watch(str(first / "x"), heard.set)
    finally:
        inotify.close()
        inotify.close()
