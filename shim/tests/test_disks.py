from __future__ import annotations

from pathlib import Path

import pytest

from hostlib.errors import FailedPrecondition, Internal, ResourceExhausted
from shim import disks
from shim.disks import Disks
from shim.layers import Layer, Layers
from shim.plan import Disk, Plan
from shim.tests.fakes import FakeVM


async def test_slots_are_given_back() -> None:
    vm, layers = FakeVM(), Layers(2)
    made = Disks(layers, [13, 14])
    slots = [await made.attach(vm, Disk(n, read_only=False, descriptor=9)) for n in range(2)]
    assert sorted(slots) == [13, 14]
    with pytest.raises(ResourceExhausted, match="2 slots"):
        await made.attach(vm, Disk(2, read_only=False, descriptor=9))
    lent = await made.attach(vm, Disk(2, read_only=True, descriptor=9))
    assert lent in (0, 1)
    with pytest.raises(ResourceExhausted):
        await layers.acquire(vm, [Layer("a", Path("/a")), Layer("b", Path("/b"))])
    await made.detach(vm, lent, read_only=True)
    await layers.acquire(vm, [Layer("a", Path("/a")), Layer("b", Path("/b"))])
    with pytest.raises(ResourceExhausted, match="read-only"):
        await made.attach(vm, Disk(2, read_only=True, descriptor=9))
    vm.attach_error = Internal("no")
    await made.detach(vm, slots[0], read_only=False)
    with pytest.raises(Internal):
        await made.attach(vm, Disk(2, read_only=False, descriptor=9))
    vm.attach_error = None
    assert await made.attach(vm, Disk(2, read_only=False, descriptor=9)) == slots[0]
    assert vm.agent.asked("disk.release") == [{"slot": lent}, {"slot": slots[0]}]


@pytest.mark.parametrize("error", [FailedPrecondition("it is mounted"), Internal("gone")])
async def test_a_disk_in_use_is_waited_for_and_taken(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "_BUSY_WAIT", 0.0)
    vm = FakeVM()
    made = Disks(Layers(2), [13])
    await made.attach(vm, Disk(0, read_only=False, descriptor=9))
    vm.agent.answers["disk.release"] = error
    await made.detach(vm, 13, read_only=False)
    assert vm.slots == {}
    asked = len(vm.agent.asked("disk.release"))
    assert asked == (40 if isinstance(error, FailedPrecondition) else 1)


def test_the_spec_says_where_a_disk_is() -> None:
    nodes = [{"path": "/dev/null"}, {"path": "/dev/a", "disk": 0}, {"path": "/dev/b", "disk": 1}]
    plan = Plan({"linux": {"devices": nodes}}, [])
    plan.place_disk(Disk(1, read_only=False, descriptor=9), 14)
    assert nodes[1:] == [{"path": "/dev/a", "disk": 0}, {"path": "/dev/b", "slot": 14}]
