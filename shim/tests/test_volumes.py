from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hostlib.errors import Internal, InvalidArgument
from shim import volumes
from shim.sandbox import OwnVolume, SharedMount
from shim.tests.fakes import FakeVM
from shim.volumes import Volumes

MOUNT = SharedMount("c-0", read_only=True, published=True)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.vm, self.volumes, self.folder = FakeVM(), Volumes(), folder
        self.count = 0
        self.publish("0")
        self.tree = os.open(folder, os.O_PATH | os.O_DIRECTORY)

    def publish(self, content: str) -> None:
        self.count += 1
        payload = self.folder / f"..{self.count}"
        payload.mkdir()
        (payload / "key").write_text(content)
        (self.folder / "..tmp").symlink_to(payload.name)
        (self.folder / "..tmp").rename(self.folder / "..data")

    @property
    def told(self) -> list[dict[str, Any]]:
        return self.vm.agent.asked("volume.write")

    async def take(self, mount: SharedMount = MOUNT) -> str | None:
        return await self.volumes.take(self.vm, mount, self.tree)

    async def until_told(self, times: int) -> None:
        async with asyncio.timeout(20):
            while len(self.told) < times:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.volumes.close()
    os.close(made.tree)


async def test_a_copy_follows_its_folder(bench: Bench) -> None:
    before = set(os.listdir("/proc/self/fd"))
    assert await bench.take() == "/run/thaw/volumes/c-0"
    assert len(bench.told) == 1
    bench.publish("1")
    await bench.until_told(2)
    # What changes nothing is not told.
    os.utime(bench.folder / "..data", follow_symlinks=False)
    bench.vm.agent.answers["volume.write"] = Internal("no space")
    bench.publish("2")
    await bench.until_told(3)
    # One that failed is tried again with the next change, or after a while.
    del bench.vm.agent.answers["volume.write"]
    bench.publish("3")
    await bench.until_told(4)
    await bench.volumes.release(bench.vm, "c-0", alive=True)
    await bench.volumes.release(bench.vm, "c-0", alive=True)
    assert bench.vm.agent.asked("volume.remove") == [{"volume": "c-0"}]
    bench.publish("4")
    await asyncio.sleep(0.1)
    assert len(bench.told) == 4
    await bench.volumes.close()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_without_inotify_it_is_looked_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(volumes, "Inotify", none)
    monkeypatch.setattr(volumes, "_POLL", 0.05)
    await bench.take()
    bench.publish("1")
    await bench.until_told(2)


async def test_what_cannot_be_copied_is_shared(bench: Bench) -> None:
    os.mkfifo(bench.folder / "..1/fifo")
    before = set(os.listdir("/proc/self/fd"))
    assert await bench.take() is None
    assert bench.told == []
    assert await bench.take(SharedMount("c-1", read_only=True)) is None
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 2, "inotify and epoll"


async def test_a_copy_that_the_guest_refuses_is_taken_back(bench: Bench) -> None:
    bench.vm.agent.answers["volume.write"] = Internal("no space")
    with pytest.raises(Internal):
        await bench.take()
    assert bench.vm.agent.asked("volume.remove") == [{"volume": "c-0"}]


async def test_an_empty_dir_is_one_for_all(bench: Bench, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "sub").mkdir(parents=True)
    tree = os.open(empty, os.O_PATH | os.O_DIRECTORY)
    whole = OwnVolume("7", "", 1 << 20, 0o2777, 0, 3000)
    part = OwnVolume("7", "sub", 1 << 20, 0o750, 0, 3000)

    async def take(own: OwnVolume) -> str | None:
        mount = SharedMount("c-0", read_only=False, own=own)
        return await bench.volumes.take(bench.vm, mount, tree)

    try:
        assert await take(whole) == "/run/thaw/volumes/own-7"
        # What came to the host's folder later does not tear the volume in two.
        (empty / "file").touch()
        assert await take(part) == "/run/thaw/volumes/own-7/sub"
        assert await take(OwnVolume("8", "", 1, 0, 0, 0)) is None
        (empty / "file").unlink()
        assert await take(OwnVolume("9", "", 0, 0o777, 0, 0, huge=True))
    finally:
        os.close(tree)
    asked = bench.vm.agent.asked("volume.make")
    told = [(each["path"], each["mode"], each.get("huge")) for each in asked]
    assert told == [("", 0o2777, None), ("sub", 0o750, None), ("", 0o777, True)]


@pytest.mark.parametrize("data", [None, [], {"path": "x"}, {"path": 1}, {"path": "", "key": "x"}])
def test_a_malformed_volume_is_refused(data: object) -> None:
    with pytest.raises(InvalidArgument):
        OwnVolume.parse(data)
    with pytest.raises(InvalidArgument):
        SharedMount.parse({"share": "../x"})
