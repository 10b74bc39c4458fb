"""Bakes base snapshots: boot, settle, stop, save, publish."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hostlib import failpoint, ids
from hostlib.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    ThawError,
)
from hostlib.tasks import in_thread
from vmm import accel as accelerators
from vmm import channel as channels
from vmm import ram, restore, snapshot, sparse
from vmm.accel import Accelerator
from vmm.guest import GuestImage, file_sha256
from vmm.microvm import MicroVM, VmDied
from vmm.qemu.argv import SCRATCH_SLOT
from vmm.qemu.build import identify
from vmm.restore import ClockReading
from vmm.shape import MachineShape
from vmm.snapshot import Inputs, Snapshot

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]

BOOT_TIMEOUT: Final = 120.0
"""Seconds for a cold boot under emulation on a busy host."""

_SETTLE_TIMEOUT: Final = 15.0
_SETTLE_WINDOW: Final = 0.25
_SETTLE_WINDOWS: Final = 2
_IDLE_SHARE: Final = 0.04
_CLOCK_RATE: Final = 0.01
_CLOCK_ATTEMPTS: Final = 5
_NEW_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def _cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", "rb") as source:
        fields = source.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def settle(vm: MicroVM) -> bool:
    """Wait until the guest idles: its QEMU uses under 4 % of a processor for half a second.

    False when it never did within 15 s; such a snapshot works, but each VM goes on with that work.
    """
    calm, deadline = 0, time.monotonic() + _SETTLE_TIMEOUT
    while calm < _SETTLE_WINDOWS and time.monotonic() < deadline:
        before, start = _cpu_seconds(vm.pid), time.monotonic()
        await asyncio.sleep(_SETTLE_WINDOW)
        used = (_cpu_seconds(vm.pid) - before) / (time.monotonic() - start)
        calm = calm + 1 if used < _IDLE_SHARE else 0
    return calm >= _SETTLE_WINDOWS


class ClockRunsWrong(FailedPrecondition):
    """A guest that measured its processor wrongly as it booted, which a busy host makes it do."""


def check_clock(begun: ClockReading, ended: ClockReading) -> None:
    """Raises `ClockRunsWrong` where a guest's clock is more than `_CLOCK_RATE` off the host's
    between two readings, and more than they can tell.

    Linux takes the frequency of the TSC as it boots, by another timer. Where the host lets neither
    run at that moment it is wrong, several times at worst, and every VM of the snapshot keeps it.
    """
    gained, elapsed = begun.behind - ended.behind, ended.at - begun.at
    if abs(gained) > _CLOCK_RATE * elapsed + begun.doubt + ended.doubt:
        raise ClockRunsWrong(
            f"the guest's clock ran {(elapsed + gained) / 1e6:.0f} ms in {elapsed / 1e6:.0f} ms",
            hint="bake while the host is less busy",
        )


async def _boot(
    guest: GuestImage,
    inputs: Inputs,
    accel: Accelerator,
    qemu: str,
    uid_base: int,
    share: Path,
    memory: int,
) -> MicroVM:
    """A booted VM whose agent answers. Raises `DeadlineExceeded` or `VmDied`, with the console."""
    proving = accel.name != "tcg" and not accel.forced
    timeout = accelerators.PROOF_TIMEOUT if proving else BOOT_TIMEOUT
    vm = await MicroVM.boot(
        guest,
        inputs.shape,
        accel=accel,
        qemu=qemu,
        share=share,
        ram_fd=memory,
        uid_base=uid_base,
        channel=inputs.channel,
    )
    try:
        await vm.connect(timeout=timeout)
        await vm.agent.request("ping")
    except BaseException as error:
        console = vm.console().decode(errors="replace").strip()[-2000:]
        await vm.kill()
        if console and isinstance(error, ThawError):
            log.warning("the guest's console before it failed to boot:\n%s", console)
        raise
    return vm


def _load(template: Path, disk: int) -> int:
    with open(template, "rb") as source:
        size = os.fstat(source.fileno()).st_size
        sparse.copy(source.fileno(), disk, size)
    return size


def _store(memory: int, target: Path, size: int) -> str:
    # QEMU writes to memory alone, also devices and disk: a full disk is met here, as what it is.
    sink = os.open(target, _NEW_FILE, 0o600)
    try:
        digest = sparse.copy(memory, sink, size)
        os.fsync(sink)
    finally:
        os.close(sink)
    return digest


async def _capture(
    inputs: Inputs,
    staged: Path,
    folder: Path,
    guest: GuestImage,
    accel: Accelerator,
    qemu: str,
    uid_base: int,
    progress: Progress,
) -> Snapshot:
    size = inputs.shape.memory_bytes
    share, devices = staged / "share", staged / "devices"
    share.mkdir(exist_ok=True)
    memory, state = ram.create("thaw-bake"), ram.create("thaw-bake-devices")
    disk = ram.create("thaw-bake-scratch")
    try:
        progress("booting the guest", 0.05)
        disk_size = await in_thread(_load, guest.scratch, disk)
        vm = await _boot(guest, inputs, accel, qemu, uid_base, share, memory)
        try:
            await vm.attach(SCRATCH_SLOT, disk, read_only=False)
            await vm.agent.request("scratch.mount", {"slot": SCRATCH_SLOT})
            progress("rehearsing", 0.4)
            await vm.rehearse(guest.rehearsal, with_exec=True)
            progress("waiting for the guest to idle", 0.5)
            begun = await restore.read_clock(vm)
            if not await settle(vm):
                log.warning("the guest never idled; baking it as it is")
            check_clock(begun, await restore.read_clock(vm))
            await vm.agent.request("sync")
            await vm.agent.request("ping")
            progress("saving devices", 0.7)
            await vm.pause()
            await failpoint.hit("bake.save")
            await vm.save_devices(state)
        finally:
            await vm.kill()
        progress("saving memory", 0.8)
        digest = await in_thread(_store, memory, staged / "ram", size)
        await in_thread(_store, state, devices, os.fstat(state).st_size)
        disk_digest = await in_thread(_store, disk, staged / "scratch", disk_size)
    finally:
        for descriptor in (memory, state, disk):
            os.close(descriptor)
    share.rmdir()
    return Snapshot(
        folder, inputs, size, digest, devices.stat().st_size,
        await in_thread(file_sha256, devices), disk_size, disk_digest,
    )  # fmt: skip


async def _bake_with(
    guest: GuestImage,
    shape: MachineShape,
    snapshots: Path,
    accel: Accelerator,
    qemu: str,
    uid_base: int,
    progress: Progress,
    channel: str,
) -> Snapshot:
    inputs = Inputs.of(await identify(qemu), accel.name, shape, guest, channel)
    folder = snapshots / inputs.key
    await in_thread(snapshot.sweep, snapshots)
    try:
        found = await snapshot.load(folder, inputs, whole=True)
    except ThawError as error:
        if folder.exists():
            log.warning("snapshot %s is baked again: %s", inputs.key[:12], error)
    else:
        progress("found", 1.0)
        return found
    await failpoint.hit("bake.begin")
    staged: Path | None = None
    try:
        staged = snapshot.staging(snapshots, inputs.key)
        what = (inputs, staged, folder, guest, accel, qemu, uid_base, progress)
        for _ in range(_CLOCK_ATTEMPTS - 1):
            try:
                baked = await _capture(*what)
                break
            except ClockRunsWrong as error:
                log.warning("another guest is booted: %s", error)
        else:
            baked = await _capture(*what)
        await failpoint.hit("bake.publish")
        progress("publishing", 0.95)
        return await snapshot.publish(staged, baked)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(
                f"no space for a snapshot in {snapshots}",
                hint=f"a snapshot of shape {shape} takes 100 to 300 MB",
            ) from error
        raise
    finally:
        if staged is not None and staged.exists():
            await in_thread(shutil.rmtree, staged, True)


async def bake(
    guest: GuestImage,
    shape: MachineShape,
    *,
    snapshots: Path,
    accel: Accelerator,
    qemu: str,
    progress: Progress,
    uid_base: int = ids.WORKER_UID_BASE,
) -> Snapshot:
    """The base snapshot of `shape`: the one that is there and whole, else a new one.

    An accelerator that was only probed is proven here: when a guest does not boot with it within
    `vmm.accel.PROOF_TIMEOUT`, the bake goes on with TCG; the accelerator used is in the snapshot's
    inputs. `uid_base` is `MicroVM.restore`'s. Raises `ResourceExhausted` when the disk is full,
    `FailedPrecondition` for a missing or old QEMU, `DeadlineExceeded`, `VmDied`. Nothing but a
    whole snapshot is ever published.
    """
    channel = channels.choose()
    try:
        done = await _bake_with(guest, shape, snapshots, accel, qemu, uid_base, progress, channel)
    except (DeadlineExceeded, VmDied) as error:
        if accel.name == "tcg":
            raise
        slower = accelerators.disproved(accel, error.message)
        log.warning("%s", slower.reason)
        done = await _bake_with(guest, shape, snapshots, slower, qemu, uid_base, progress, channel)
    progress("baked", 1.0)
    return done


def accelerator_of(baked: Snapshot, probed: Accelerator) -> Accelerator:
    """The accelerator to restore `baked` with, given the one that was probed before its bake."""
    if baked.inputs.accel == probed.name:
        return probed
    if baked.inputs.accel != "tcg":
        raise FailedPrecondition(
            f"snapshot {baked.key[:12]} was baked with {baked.inputs.accel}, not {probed.name}"
        )
    return accelerators.tcg(f"{probed.name} was offered, but a guest did not boot with it")
