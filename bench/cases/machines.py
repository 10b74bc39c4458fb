"""Cold boot against restore, VM by VM, to the agent's answer; without a daemon."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

from bench.rows import THAW
from bench.session import Session
from cri.config import Guest, shape_size
from e2e.harness.daemon import PROJECT, SNAPSHOTS
from vmm import accel as accelerators
from vmm import ram
from vmm.accel import Accelerator
from vmm.bake import accelerator_of, bake
from vmm.guest import GuestImage
from vmm.microvm import MicroVM
from vmm.shape import MachineShape
from vmm.snapshot import Snapshot

QEMU = "/usr/bin/qemu-system-x86_64"


def measure(session: Session) -> None:
    asyncio.run(_measure(session))


async def _measure(session: Session) -> None:
    guest = GuestImage.load(PROJECT / ".build" / "guest")
    shape = MachineShape(*shape_size(Guest().default_shape))
    probed = accelerators.probe()
    SNAPSHOTS.mkdir(parents=True, exist_ok=True)
    baked = await bake(
        guest, shape, snapshots=SNAPSHOTS, accel=probed, qemu=QEMU, progress=lambda *_: None
    )
    accel = accelerator_of(baked, probed)
    session.extra["accelerator"] = f"{accel.name}: {accel.reason}"
    memory = await ram.load(baked)
    try:
        with tempfile.TemporaryDirectory(prefix="thaw-bench-vm-") as folder:
            for _ in session.rounds(8, 2, 35):
                session.gate.wait()
                cold = await _boot(guest, shape, accel, Path(folder))
                session.gate.wait()
                warm = await _restore(baked, memory, accel, Path(folder))
                session.figures.add("cold_boot", THAW, cold * 1000)
                session.figures.add("restore", THAW, warm * 1000)
                session.figures.add("restore_speedup", THAW, cold / warm, "x")
    finally:
        os.close(memory)


async def _boot(guest: GuestImage, shape: MachineShape, accel: Accelerator, share: Path) -> float:
    begun = time.perf_counter()
    vm = await MicroVM.boot(guest, shape, accel=accel, qemu=QEMU, share=share)
    try:
        await vm.connect(timeout=120)
        await vm.agent.request("ping")
        return time.perf_counter() - begun
    finally:
        await vm.kill()


async def _restore(baked: Snapshot, memory: int, accel: Accelerator, share: Path) -> float:
    begun = time.perf_counter()
    vm = await MicroVM.restore(
        baked, ram_fd=memory, tap_fd=None, share=share, accel=accel, qemu=QEMU
    )
    try:
        await vm.resume()
        await vm.connect()
        await vm.agent.request("ping")
        return time.perf_counter() - begun
    finally:
        await vm.kill()
