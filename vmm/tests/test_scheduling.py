"""The guest's scheduler: how seldom it serves ordinary tasks, and that it does. On real QEMU."""

from __future__ import annotations

import base64
import subprocess

import pytest

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
