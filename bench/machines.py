"""Cold boot against restore, VM by VM, to the agent's answer; without a daemon."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bench.samples import Figures
from e2e.harness.daemon import PROJECT, SNAPSHOTS
from vmm import accel as accelerators
from vmm import ram
from vmm.bake import accelerator_of, bake
from vmm.guest import GuestImage
from vmm.microvm import MicroVM
from vmm.shape import MachineShape

SHAPE = MachineShape(vcpus=2, memory_mib=1024)
QEMU = "/usr/bin/qemu-system-x86_64"


async def measure(figures: Figures, rounds: int) -> str:
    """Alternate cold boots and restores; the accelerator, and why it was chosen."""
    guest = GuestImage.load(PROJECT / ".build" / "guest")
    probed = accelerators.probe()
    SNAPSHOTS.mkdir(parents=True, exist_ok=True)
    baked = await bake(
        guest, SHAPE, snapshots=SNAPSHOTS, accel=probed, qemu=QEMU, progress=lambda *_: None
    )
    accel = accelerator_of(baked, probed)
    memory = await ram.load(baked)
    try:
        with tempfile.TemporaryDirectory(prefix="thaw-bench-") as folder:
            for _ in range(rounds):
                with figures.timed("cold boot to the agent's answer"):
                    vm = await MicroVM.boot(
                        guest, SHAPE, accel=accel, qemu=QEMU, share=Path(folder)
                    )
                    await vm.connect(timeout=120)
                    await vm.agent.request("ping")
                await vm.kill()
                with figures.timed("restore to the agent's answer"):
                    vm = await MicroVM.restore(
                        baked,
                        ram_fd=memory,
                        tap_fd=None,
                        share=Path(folder),
                        accel=accel,
                        qemu=QEMU,
                    )
                    await vm.resume()
                    await vm.connect()
                    await vm.agent.request("ping")
                await vm.kill()
    finally:
        os.close(memory)
    return f"{accel.name}: {accel.reason}"
