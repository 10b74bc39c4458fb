"""Growth against guests that do as they are told, late, in part, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from hostlib import failpoint
from hostlib.errors import InvalidArgument, ResourceExhausted, ThawError
from vmm import growth
from vmm.growth import Growth
from vmm.microvm import MicroVM
from vmm.qemu.qmp import QmpFailed
from vmm.shape import MachineShape

MIB = 1 << 20
BASE = MachineShape(1, 256)
REGION = 8192


class Guest:
    """A machine and its guest, as the monitor and the agent tell of them. `takes` is how many MiB
    it plugs at most, `keeps` how many it never gives back, `wakes` how many processors it brings
    online at most, `used` the MiB that are in use."""

    def __init__(self) -> None:
        self.takes, self.keeps, self.wakes = 1 << 20, 0, 8
        self.used = 0
        self.size = self.requested = self.region = 0
        self.plugged, self.online = 1, 1
        self.commands: list[str] = []
        self.fails: set[str] = set()
        self.agent = self

    async def monitor(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        wanted = arguments or {}
        self.commands.append(command)
        if command in self.fails:
            raise QmpFailed(f"QEMU refused {command}")
        match command:
            case "query-hotpluggable-cpus":
                return [self._slot(number) for number in reversed(range(8))]
            case "device_add" if wanted["driver"] == "virtio-mem-pci":
                assert self.region
                assert wanted["bus"] == "hot0"
            case "device_add":
                assert wanted["socket-id"] == self.plugged, "in the order of their numbers"
                self.plugged += 1
            case "object-add":
                assert not self.region, "it was removed where it was of no use"
                self.region = wanted["size"]
            case "object-del":
                self.region = 0
            case "qom-set":
                self.requested = wanted["value"]
            case "qom-get":
                self._follow()
                return self.size
            case _:
                raise AssertionError(command)
        return {}

    def _slot(self, number: int) -> dict[str, Any]:
        props = {"socket-id": number, "core-id": 0, "thread-id": 0}
        there = {"qom-path": f"/machine/{number}"} if number < self.plugged else {}
        return {"type": "max-x86_64-cpu", "vcpus-count": 1, "props": props, **there}

    def _follow(self) -> None:
        """A step of 2 MiB at a time would be a long test."""
        step = 64 * MIB
        if self.requested > self.size:
            self.size = max(self.size, min(self.size + step, self.requested, self.takes * MIB))
        elif self.requested < self.size:
            self.size = min(self.size, max(self.size - step, self.requested, self.keeps * MIB))

    async def request(
        self, method: str, params: dict[str, Any], *, timeout: float
    ) -> dict[str, Any]:
        assert method == "machine.settle"
        if params["cpus"]:
            self.online = min(params["cpus"], self.plugged, self.wakes)
        memory = 200 * MIB + self.size
        # What is in use is where it can be moved, as long as it has room there.
        moved = min(self.used * MIB, self.size)
        kernel = 100 * MIB - (self.used * MIB - moved)
        movable = self.size - moved
        return {"cpus": self.online, "memory": memory, "kernel": kernel, "movable": movable}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(growth, "PATIENCE", 0.2)
    monkeypatch.setattr(growth, "_POLL", 0.001)
    yield
    failpoint.disarm()


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
async def grown(guest: Guest) -> Growth:
    return Growth(cast("MicroVM", guest), BASE, BASE.most("kvm"))


async def test_up_and_down(guest: Guest, grown: Growth) -> None:
    up = MachineShape(3, 1280)
    assert await grown.resize(up, REGION) == up
    assert (guest.size, guest.online, guest.region) == (1024 * MIB, 3, REGION * MIB)
    assert await grown.resize(BASE, REGION) == BASE
    assert (guest.size, guest.online, guest.plugged) == (0, 1, 3)
    again = MachineShape(4, 512)
    assert await grown.resize(again, REGION) == again
    # The device stays, and so do processors.
    assert guest.commands.count("object-add") == 1
    assert guest.commands.count("device_add") == 4


async def test_nothing_is_asked_where_nothing_changes(guest: Guest, grown: Growth) -> None:
    assert await grown.resize(BASE, REGION) == BASE
    assert not guest.commands


@pytest.mark.parametrize(
    "wanted", [MachineShape(1, 128), MachineShape(9, 256), MachineShape(64, 1024)]
)
async def test_sizes_that_no_growth_leads_to(grown: Growth, wanted: MachineShape) -> None:
    with pytest.raises(InvalidArgument):
        await grown.resize(wanted, REGION)


async def test_more_than_the_device_has(guest: Guest, grown: Growth) -> None:
    with pytest.raises(ResourceExhausted, match="start the pod anew"):
        await grown.resize(MachineShape(1, 1280), 512)
    assert (grown.size, guest.size) == (BASE, 0)


async def test_a_guest_that_takes_a_part_is_asked_to_give_it_back(
    guest: Guest, grown: Growth
) -> None:
    guest.takes = 300
    with pytest.raises(ResourceExhausted, match="300 MiB more, not 1024"):
        await grown.resize(MachineShape(2, 1280), REGION)
    assert (grown.size, guest.size, guest.online) == (BASE, 0, 1)
    assert await grown.resize(MachineShape(2, 512), REGION) == MachineShape(2, 512)


async def test_a_guest_that_keeps_a_part_is_not_asked_for_ever(guest: Guest, grown: Growth) -> None:
    await grown.resize(MachineShape(1, 1280), REGION)
    guest.keeps = 700
    assert await grown.resize(BASE, REGION) == MachineShape(1, 256 + 700)
    assert guest.requested == guest.size
    guest.keeps = 0
    assert await grown.resize(BASE, REGION) == BASE


async def test_what_is_in_use_is_not_asked_for(guest: Guest, grown: Growth) -> None:
    await grown.resize(MachineShape(1, 1280), REGION)
    guest.used = 700
    left = await grown.resize(BASE, REGION)
    assert left == MachineShape(1, 256 + 700 + 64 - 100)
    guest.used = 740
    assert await grown.resize(BASE, REGION) == left
    guest.used = 30
    assert await grown.resize(BASE, REGION) == BASE


async def test_processors_that_do_not_come_online(guest: Guest, grown: Growth) -> None:
    guest.wakes = 2
    with pytest.raises(ResourceExhausted, match="2 processors online, not 4"):
        await grown.resize(MachineShape(4, 512), REGION)
    assert (grown.size, guest.online, guest.size) == (BASE, 1, 0)
    guest.wakes = 8
    assert await grown.resize(MachineShape(4, 512), REGION) == MachineShape(4, 512)
    assert guest.plugged == 4


async def test_a_guest_whose_words_make_no_sense(guest: Guest, grown: Growth) -> None:
    async def mumble(method: str, params: object, *, timeout: float) -> dict[str, Any]:
        return {"cpus": "many", "memory": -1}

    guest.request = mumble  # type: ignore[method-assign]
    with pytest.raises(ResourceExhausted, match="does not say"):
        await grown.resize(MachineShape(2, 256), REGION)


@pytest.mark.parametrize(
    "step",
    [
        *("growth.cpu", "growth.online", "growth.backend", "growth.device", "growth.memory"),
        *("growth.done", "object-add", "device_add", "qom-set", "query-hotpluggable-cpus"),
    ],
)
async def test_a_step_that_fails_leaves_the_former_size(
    guest: Guest, grown: Growth, step: str
) -> None:
    if step.startswith("growth."):
        failpoint.arm(f"{step}=1*error")
    else:
        guest.fails.add(step)
    up = MachineShape(2, 1280)
    with pytest.raises(ThawError):
        await grown.resize(up, REGION)
    assert (grown.size, guest.size, guest.online) == (BASE, 0, 1)
    guest.fails.clear()
    assert await grown.resize(up, REGION) == up
