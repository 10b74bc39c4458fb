"""What a bake does on a full disk, with a damaged snapshot, without QEMU or kernel."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from hostlib import process
from hostlib.errors import DataLoss, FailedPrecondition, ResourceExhausted
from vmm import bake as baking
from vmm import ram, restore, sparse
from vmm.accel import Accelerator
from vmm.guest import GuestImage
from vmm.microvm import MicroVM
from vmm.restore import ClockReading
from vmm.shape import MachineShape
from vmm.snapshot import Snapshot, staging

SHAPE = MachineShape(1, 256)

Bake = Callable[[Path], Awaitable[Snapshot]]


@pytest.fixture
def bake(guest: GuestImage, accelerator: Accelerator, qemu: str) -> Bake:
    async def work(snapshots: Path) -> Snapshot:
        return await baking.bake(
            guest,
            SHAPE,
            snapshots=snapshots,
            accel=accelerator,
            qemu=qemu,
            progress=lambda step, share: None,
        )

    return work


@pytest.fixture
async def small_disk(tmp_path: Path) -> AsyncIterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    await process.run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk))
    yield disk
    await process.run("umount", str(disk))


def fill(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


@pytest.mark.parametrize("left", [16, 0])
async def test_a_full_disk_is_told_and_left_as_it_was(
    bake: Bake, small_disk: Path, left: int
) -> None:
    """Full at the RAM, or so full from the start that not even the record fits."""
    filler = small_disk / "filler"
    fill(filler, (16 - left) * 2**20 or 1)
    with pytest.raises(ResourceExhausted) as caught:
        await bake(small_disk / "snapshots" if left else small_disk)
    assert caught.value.hint
    assert [path for path in small_disk.rglob("*") if path.is_file()] == [filler]
    assert not list(small_disk.rglob(".baking-*"))


def copy(snapshot: Snapshot, folder: Path) -> None:
    """As sparse as it is: its scratch disk has 10 GiB."""
    folder.mkdir()
    for source in snapshot.folder.iterdir():
        sparse.clone(source, folder / source.name)


def cut(folder: Path) -> None:
    os.truncate(folder / "devices", 1000)


def flip_ram(folder: Path) -> None:
    with open(folder / "ram", "r+b") as file:
        file.seek(0x100000)
        byte = file.read(1)[0]
        file.seek(0x100000)
        file.write(bytes([byte ^ 1]))


def break_record(folder: Path) -> None:
    record = folder / "snapshot.json"
    record.write_bytes(record.read_bytes()[:-20])


def forget_record(folder: Path) -> None:
    (folder / "snapshot.json").unlink()


@pytest.mark.parametrize("damage", [cut, flip_ram, break_record, forget_record])
async def test_a_damaged_snapshot_is_replaced(
    bake: Bake,
    snapshot: Snapshot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    folder = tmp_path / snapshot.key
    copy(snapshot, folder)
    damage(folder)
    begun: list[Path] = []

    async def capture(inputs: object, staged: Path, target: Path, *rest: object) -> Snapshot:
        begun.append(staged)
        for name in ("ram", "devices", "scratch"):
            sparse.clone(snapshot.folder / name, staged / name)
        return dataclasses.replace(snapshot, folder=target)

    monkeypatch.setattr(baking, "_capture", capture)
    baked = await bake(tmp_path)
    assert len(begun) == 1
    assert baked.folder == folder
    assert list(tmp_path.iterdir()) == [folder]
    os.close(await ram.load(baked))
    assert await bake(tmp_path) == baked
    assert len(begun) == 1


async def test_what_a_bake_that_was_killed_left_goes_with_the_next(
    bake: Bake, snapshot: Snapshot, tmp_path: Path
) -> None:
    copy(snapshot, tmp_path / snapshot.key)
    alive = staging(tmp_path, snapshot.key)
    (tmp_path / f".baking-{snapshot.key[:16]}-{os.getpid()}-1").mkdir()
    (tmp_path / f".baking-{snapshot.key[:16]}-999999999-1").mkdir()
    (tmp_path / ".baking-old").mkdir()
    assert (await bake(tmp_path)).folder == tmp_path / snapshot.key
    assert sorted(tmp_path.iterdir()) == sorted([alive, tmp_path / snapshot.key])


def mistime(monkeypatch: pytest.MonkeyPatch, bakes: int) -> list[ClockReading]:
    """Let the clocks of the guests of so many bakes run a second too fast; the readings."""
    readings: list[ClockReading] = []
    real = restore.read_clock

    async def read(vm: MicroVM) -> ClockReading:
        reading = await real(vm)
        at_end = len(readings) % 2 == 1
        if at_end and len(readings) < 2 * bakes:
            reading = dataclasses.replace(reading, behind=reading.behind - 10**9)
        readings.append(reading)
        return reading

    monkeypatch.setattr(restore, "read_clock", read)
    return readings


async def test_where_a_guests_clock_runs_wrong_another_is_booted(
    bake: Bake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = mistime(monkeypatch, 1)
    baked = await bake(tmp_path)
    assert len(readings) == 4
    assert list(tmp_path.iterdir()) == [baked.folder]


async def test_no_clock_that_runs_wrong_is_baked(
    bake: Bake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baking, "_CLOCK_ATTEMPTS", 2)
    readings = mistime(monkeypatch, 2)
    with pytest.raises(FailedPrecondition, match=r"the guest's clock ran \d+ ms in \d+ ms"):
        await bake(tmp_path)
    assert len(readings) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("gained", "doubt", "right"),
    [(0, 0, True), (5, 0, True), (-5, 0, True), (11, 0, False), (-11, 0, False), (11, 1, True)],
)
def test_how_far_off_a_clock_may_run(gained: int, doubt: int, right: bool) -> None:
    """In milliseconds, in a second."""
    ms = 10**6
    begun = ClockReading(0, 7 * ms, doubt * ms)
    ended = ClockReading(1000 * ms, (7 - gained) * ms, doubt * ms)
    if right:
        baking.check_clock(begun, ended)
    else:
        with pytest.raises(baking.ClockRunsWrong):
            baking.check_clock(begun, ended)


async def test_a_vm_lives_from_a_snapshot_baked_again(
    bake: Bake, snapshot: Snapshot, accelerator: Accelerator, qemu: str, tmp_path: Path
) -> None:
    copy(snapshot, tmp_path / snapshot.key)
    flip_ram(tmp_path / snapshot.key)
    baked = await bake(tmp_path)
    descriptor = await ram.load(baked)
    try:
        vm = await MicroVM.restore(
            baked, ram_fd=descriptor, tap_fd=None, share=tmp_path, accel=accelerator, qemu=qemu
        )
        try:
            await vm.resume()
            await vm.connect()
            assert (await vm.agent.request("ping"))["realtime_ns"] > 0
        finally:
            await vm.kill()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("#!/bin/sh\necho 'QEMU emulator version 6.2.0 (Debian 1:6.2)'\n", "too old"),
        ("#!/bin/sh\necho 'GNU bash, 5.2'\n", "no QEMU"),
        ("#!/bin/sh\nexit 3\n", "does not run"),
        (None, "not there"),
    ],
)
async def test_a_qemu_that_cannot_serve_is_refused(
    guest: GuestImage, accelerator: Accelerator, tmp_path: Path, script: str | None, told: str
) -> None:
    qemu = tmp_path / "qemu-system-x86_64"
    if script is not None:
        qemu.write_text(script)
        qemu.chmod(0o755)
    with pytest.raises(FailedPrecondition, match=told) as caught:
        await baking.bake(
            guest,
            SHAPE,
            snapshots=tmp_path / "snapshots",
            accel=accelerator,
            qemu=str(qemu),
            progress=lambda step, share: None,
        )
    assert caught.value.hint
    assert not (tmp_path / "snapshots").exists()


@pytest.mark.parametrize("name", ["vmlinuz", "initramfs.cpio"])
async def test_a_guest_image_without_its_kernel_is_refused(
    guest: GuestImage, accelerator: Accelerator, qemu: str, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "guest"
    folder.mkdir()
    for source in guest.folder.iterdir():
        if source.is_file() and source.name != name:
            (folder / source.name).symlink_to(source)
    with pytest.raises(DataLoss, match=name) as caught:
        GuestImage.load(folder)
    assert caught.value.hint
    with pytest.raises(FailedPrecondition, match=name) as refused:
        await baking.bake(
            dataclasses.replace(guest, folder=folder),
            SHAPE,
            snapshots=tmp_path / "snapshots",
            accel=accelerator,
            qemu=qemu,
            progress=lambda step, share: None,
        )
    assert refused.value.hint
    assert not list((tmp_path / "snapshots").iterdir())
