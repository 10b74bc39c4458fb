"""What an idle guest does seldom: its scheduler serves ordinary tasks, its kernel looks after dirty
pages and connections. On real QEMU."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm import ram
from vmm.accel import Accelerator
from vmm.bake import bake
from vmm.guest import GuestImage
from vmm.shape import MachineShape
from vmm.snapshot import Snapshot
from vmm.tests.containers import CAPABILITIES, Guest, capabilities, until

SERVER = "/sys/kernel/debug/sched/fair_server/cpu0"
FIFO = 1
"""SCHED_FIFO of sched_setscheduler(2), the system call 144 of x86-64."""

HOG = f"""
void _start(void) {{
    int priority = 50;
    long done;
    __asm__ volatile("syscall" : "=a"(done) : "a"(144), "D"(0), "S"({FIFO}), "d"(&priority)
                     : "rcx", "r11", "memory");
    for (;;) __asm__ volatile("");
}}
"""


@pytest.fixture(scope="module")
def snapshot(guest: GuestImage, snapshots: Path, accelerator: Accelerator, qemu: str) -> Snapshot:
    """A guest with as much memory as the default one: the kernel sizes its tables by it."""
    made = bake(
        guest,
        MachineShape(1, 2048),
        snapshots=snapshots,
        accel=accelerator,
        qemu=qemu,
        progress=lambda step, share: None,
    )
    return asyncio.run(made)


@pytest.fixture(scope="module")
def ram_fd(snapshot: Snapshot) -> Iterator[int]:
    descriptor = asyncio.run(ram.load(snapshot))
    yield descriptor
    os.close(descriptor)


@pytest.fixture(scope="module")
def hog(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A program that never sleeps, in a class above all ordinary tasks."""
    folder = tmp_path_factory.mktemp("hog")
    source, program = folder / "hog.c", folder / "hog"
    source.write_text(HOG)
    small = ("-Os", "-static", "-nostdlib", "-s", "-Wl,-N", "-Wl,--build-id=none")
    subprocess.run(["cc", *small, "-o", program, source], check=True)
    return program.read_bytes()


async def test_ordinary_tasks_are_served_every_four_seconds(busybox: Guest) -> None:
    rights = {"capabilities": capabilities(*CAPABILITIES, "CAP_SYS_ADMIN")}
    one = await busybox.run(process=rights)
    mounted = await one.sh(
        f"mount -t debugfs none /sys/kernel/debug && cat {SERVER}/runtime {SERVER}/period"
        " && cat /proc/sys/kernel/sched_rt_runtime_us",
        **rights,
    )
    assert mounted.split() == ["200000000", "4000000000", "950000"]
    await one.delete()


async def test_a_real_time_task_that_never_sleeps_leaves_time_for_others(
    busybox: Guest, hog: bytes
) -> None:
    rights = {"capabilities": capabilities(*CAPABILITIES, "CAP_SYS_NICE")}
    text = base64.b64encode(hog).decode()
    script = f"echo {text} | busybox base64 -d > /hog && chmod 755 /hog && exec /hog"
    one = await busybox.run(script, process=rights)

    async def runs() -> bool:
        # The 41st field of proc(5)'s stat is the policy.
        return (await one.sh("cat /proc/1/stat")).split()[40] == str(FIFO)

    await until(runs)
    for _ in range(3):
        await busybox.vm.agent.request("ping")
    await one.delete()


async def test_neighbours_are_not_remembered_for_ever(busybox: Guest) -> None:
    """Another pod may have the address by then, and its gratuitous ARP reaches the host alone."""
    one = await busybox.run()
    files = [f"net/{family}/neigh/default/gc_thresh1" for family in ("ipv4", "ipv6")]
    assert (await one.sh(f"cd /proc/sys && cat {' '.join(files)}")).split() == ["0", "0"]
    await one.delete()


async def test_what_lies_idle_is_looked_after_seldom(busybox: Guest) -> None:
    one = await busybox.run()
    settings = {
        "vm/dirty_writeback_centisecs": "3000",
        "vm/dirty_expire_centisecs": "3000",
        "vm/stat_interval": "30",
        "net/netfilter/nf_conntrack_buckets": "8192",
        "net/netfilter/nf_conntrack_max": "65536",
    }
    found = await one.sh(f"cd /proc/sys && cat {' '.join(settings)}")
    assert dict(zip(settings, found.split(), strict=True)) == settings
    # The second processor that QEMU could give is not even a possible one.
    assert await one.sh("cat /sys/devices/system/cpu/possible") == "0"
    await one.delete()
