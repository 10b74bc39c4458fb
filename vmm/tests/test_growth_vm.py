"""Growth on real QEMU and kernel, over a restored snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hostlib import failpoint
from hostlib.errors import ThawError
from vmm.growth import Growth
from vmm.shape import MachineShape
from vmm.snapshot import Snapshot
from vmm.tests.containers import Guest

MIB = 1 << 20
REGION = 4096


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoint.disarm()


def grows(guest: Guest, snapshot: Snapshot) -> Growth:
    return Growth(guest.vm, snapshot.shape, snapshot.shape.most(snapshot.inputs.accel))


async def has(guest: Guest) -> tuple[int, int]:
    """The guest's processors, and bytes of memory."""
    answer = await guest.vm.agent.request("machine.settle", {"cpus": 0})
    return answer["cpus"], answer["memory"]


def resident(guest: Guest) -> int:
    """The bytes of its own that QEMU holds."""
    for line in Path(f"/proc/{guest.vm.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


async def test_a_restored_vm_gets_memory_and_gives_it_back(
    busybox: Guest, snapshot: Snapshot
) -> None:
    grown = grows(busybox, snapshot)
    room = {"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["size=1g"]}
    box = await busybox.run(mounts=[room])
    _, before = await has(busybox)
    # No more than the kernel uses for what can be moved alone: three times what it began with.
    up = MachineShape(1, 256 + 768)
    assert await grown.resize(up, REGION) == up
    assert (await has(busybox))[1] == before + 768 * MIB
    mostly_untouched = resident(busybox)
    assert mostly_untouched < 256 * MIB
    await box.sh("dd if=/dev/zero of=/mnt/x bs=1M count=500")
    assert resident(busybox) > mostly_untouched + 400 * MIB
    # What is in use stays, and is told.
    half = await grown.resize(snapshot.shape, REGION)
    assert 300 < half.memory_mib < up.memory_mib
    assert await box.sh("wc -c < /mnt/x") == str(500 * MIB)
    await box.sh("rm /mnt/x")
    assert await grown.resize(snapshot.shape, REGION) == snapshot.shape
    assert (await has(busybox))[1] == before
    assert resident(busybox) < mostly_untouched + 150 * MIB
    # And again.
    assert await grown.resize(up, REGION) == up
    assert (await has(busybox))[1] == before + 768 * MIB


async def test_processors_of_a_restored_vm(busybox: Guest, snapshot: Snapshot) -> None:
    """Where Linux takes them; where it does not, the VM is as before."""
    able = snapshot.shape.most(snapshot.inputs.accel).vcpus > 1
    grown = Growth(busybox.vm, snapshot.shape, MachineShape(2, 4096))
    up = MachineShape(2, 512)
    before = await has(busybox)
    if not able:
        with pytest.raises(ThawError):
            await grown.resize(up, REGION)
        assert grown.size == snapshot.shape
        assert await has(busybox) == before
        return
    assert await grown.resize(up, REGION) == up
    assert (await has(busybox))[0] == 2
    assert await grown.resize(snapshot.shape, REGION) == snapshot.shape
    assert await has(busybox) == before


@pytest.mark.parametrize(
    "point", ["growth.backend", "growth.device", "growth.memory", "growth.done"]
)
async def test_a_step_that_fails_can_be_taken_again(
    busybox: Guest, snapshot: Snapshot, point: str
) -> None:
    grown = grows(busybox, snapshot)
    before = await has(busybox)
    failpoint.arm(f"{point}=1*error")
    up = MachineShape(1, 512)
    with pytest.raises(failpoint.Injected):
        await grown.resize(up, REGION)
    assert grown.size == snapshot.shape
    assert await has(busybox) == before
    assert await grown.resize(up, REGION) == up
    assert await has(busybox) == (1, before[1] + 256 * MIB)
