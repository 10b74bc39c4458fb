"""A running VM becomes larger, and smaller again.

Memory comes by one virtio-mem device, which is plugged when a VM first grows: QEMU notes something
for each page that such a device could have, which would cost every idle VM. What is behind it is
private memory of QEMU, in no file and charged as what the guest writes; what the guest gives back
goes back to the host. vCPUs are plugged, and brought online by the agent; one that is wanted no
longer is switched off by the guest and stays, which costs nothing.

The guest is asked and not believed: the device says what is plugged, and each wait has an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hostlib import failpoint
from hostlib.errors import InvalidArgument, ResourceExhausted, ThawError
from vmm.qemu.argv import GROWTH_PORT
from vmm.shape import MachineShape

if TYPE_CHECKING:
    from vmm.microvm import MicroVM

log = logging.getLogger(__name__)

BLOCK_MIB: Final = 128
"""What the guest's kernel takes in at a time, on x86-64 below 64 GiB."""

PATIENCE: Final = 15.0
"""Seconds without progress after which the guest is not waited for any more."""

DEADLINE: Final = 120.0
"""Seconds for one step of a guest that goes on without coming to an end."""

RESERVE: Final = 64 << 20
"""Bytes that the kernel of a guest keeps free for itself when memory is given back."""

_MIB: Final = 1 << 20
_UNIT: Final = 2 * _MIB
"""What is plugged and unplugged at a time."""
_POLL: Final = 0.02
_BACKEND: Final = "grown"
_DEVICE: Final = "grown0"


class Growth:
    """What a VM is beyond its shape. Calls take turns; each leaves the former size when it fails,
    as far as the guest lets it."""

    def __init__(self, vm: MicroVM, shape: MachineShape, most: MachineShape) -> None:
        self._vm = vm
        self._shape = shape
        self.most = most
        """What it can become."""
        self._turn = asyncio.Lock()
        self._plugged = 0
        """Bytes, as the device says."""
        self._region = 0
        self.size = shape
        """What the VM has."""

    @property
    def region_mib(self) -> int:
        """What it may have beyond its shape, in use or not; 0 before it first grows."""
        return self._region // _MIB

    async def resize(self, wanted: MachineShape, region_mib: int) -> MachineShape:
        """Make the VM this large; what it is then.

        It can be larger where the guest uses memory that it should give back. `region_mib` is what
        the VM may ever have beyond its shape; the first growth decides. Raises `InvalidArgument`
        for a size that no growth leads to, `ResourceExhausted` when the guest does not take it.
        """
        base, most = self._shape, self.most
        extra = wanted.memory_mib - base.memory_mib
        if extra < 0 or wanted.vcpus < base.vcpus or wanted.vcpus > most.vcpus:
            raise InvalidArgument(f"a VM of shape {base} does not become {wanted}")
        async with self._turn:
            former, plugged = self.size, self._plugged
            try:
                await self._set_cpus(wanted.vcpus)
                await self._set_memory(extra * _MIB, region_mib * _MIB)
            except BaseException:
                await asyncio.shield(self._undo(former, plugged))
                raise
            finally:
                log.info("the VM is %s now, %s was asked for", self.size, wanted)
            return self.size

    async def _undo(self, former: MachineShape, plugged: int) -> None:
        with contextlib.suppress(ThawError):
            if self.size.vcpus > former.vcpus:
                await self._settle(former.vcpus)
                self._note(vcpus=former.vcpus)
        with contextlib.suppress(ThawError):
            if self._region:
                await self._ask(plugged)

    def _note(self, **changes: int) -> None:
        now = {"vcpus": self.size.vcpus, "memory_mib": self.size.memory_mib}
        self.size = MachineShape(**{**now, **changes})

    # -- processors ------------------------------------------------------------------------

    async def _set_cpus(self, wanted: int) -> None:
        if wanted == self.size.vcpus:
            return
        slots = await self._vm.monitor("query-hotpluggable-cpus")
        empty = sorted(
            (slot for slot in slots if "qom-path" not in slot), key=lambda slot: _place(slot)
        )
        for slot in empty[: max(0, wanted - (len(slots) - len(empty)))]:
            await failpoint.hit("growth.cpu")
            where = slot["props"]
            name = "cpu" + "-".join(str(number) for number in _place(slot))
            await self._vm.monitor("device_add", {"driver": slot["type"], "id": name, **where})
        await failpoint.hit("growth.online")
        # From here on some may be there.
        former = self.size.vcpus
        self._note(vcpus=max(wanted, former))
        found = await self._until(wanted)
        if found != wanted:
            raise ResourceExhausted(
                f"the guest has {found} processors online, not {wanted}", hint="try it again"
            )
        self._note(vcpus=wanted)

    async def _until(self, wanted: int) -> int:
        """Wait until so many processors are online; how many are."""
        watch = _Watch()
        while (found := (await self._settle(wanted)).cpus) != wanted and await watch.again(found):
            pass
        return found

    async def _settle(self, cpus: int = 0) -> _Told:
        answer = await self._vm.agent.request("machine.settle", {"cpus": cpus}, timeout=DEADLINE)
        numbers: list[Any] = [answer.get(name) for name in ("cpus", "memory", "kernel", "movable")]
        if not all(isinstance(each, int) and each >= 0 for each in numbers):
            raise ResourceExhausted("the guest does not say what it has")
        return _Told(*numbers)

    # -- memory ----------------------------------------------------------------------------

    async def _set_memory(self, wanted: int, region: int) -> None:
        if wanted == self._plugged:
            return
        if not self._region:
            await self._plug(region)
        if wanted > self._region:
            raise ResourceExhausted(
                f"the VM can have {self._region // _MIB} MiB beyond its shape,"
                f" not {wanted // _MIB}",
                hint="what it can have was decided as it first grew: start the pod anew",
            )
        await failpoint.hit("growth.memory")
        if wanted > self._plugged:
            await self._more(wanted)
        else:
            await self._less(wanted)
        await failpoint.hit("growth.done")

    async def _more(self, wanted: int) -> None:
        before, guest = self._plugged, (await self._settle()).memory
        if await self._ask(wanted) < wanted:
            raise ResourceExhausted(
                f"the guest took {(self._plugged - before) // _MIB} MiB more,"
                f" not {(wanted - before) // _MIB}",
                hint="it needs memory to manage more: grow it in smaller steps",
            )
        await self._used(guest + wanted - before)

    async def _less(self, wanted: int) -> None:
        # What is in use is moved to where the kernel keeps its own. One without room there stands
        # still, or ends processes, whatever else is free.
        told = await self._settle()
        spare = told.movable + max(0, told.kernel - RESERVE)
        least = self._plugged - spare // _UNIT * _UNIT
        await self._ask(min(max(wanted, least), self._plugged))

    async def _plug(self, region: int) -> None:
        monitor = self._vm.monitor
        await failpoint.hit("growth.backend")
        backend = {"qom-type": "memory-backend-ram", "id": _BACKEND, "size": region}
        await monitor("object-add", backend)
        try:
            await failpoint.hit("growth.device")
            await monitor(
                "device_add",
                {
                    "driver": "virtio-mem-pci",
                    "id": _DEVICE,
                    "bus": GROWTH_PORT,
                    "memdev": _BACKEND,
                    "block-size": _UNIT,
                },
            )
        except BaseException:
            await asyncio.shield(self._quietly("object-del", {"id": _BACKEND}))
            raise
        self._region = region

    async def _quietly(self, command: str, arguments: dict[str, Any]) -> None:
        with contextlib.suppress(ThawError):
            await self._vm.monitor(command, arguments)

    async def _ask(self, wanted: int) -> int:
        """Have the guest plug or unplug until `wanted` bytes are plugged, or it does not go on; how
        many are. It is asked no further then: it would try for ever."""
        await self._request(wanted)
        watch = _Watch()
        while (found := await self._read()) != wanted and await watch.again(found):
            pass
        if found != wanted:
            await self._request(found)
            found = await self._read()
        return found

    async def _request(self, size: int) -> None:
        path = f"/machine/peripheral/{_DEVICE}"
        await self._vm.monitor(
            "qom-set", {"path": path, "property": "requested-size", "value": size}
        )

    async def _read(self) -> int:
        path = f"/machine/peripheral/{_DEVICE}"
        self._plugged = int(await self._vm.monitor("qom-get", {"path": path, "property": "size"}))
        self._note(memory_mib=self._shape.memory_mib + self._plugged // _MIB)
        return self._plugged

    async def _used(self, wanted: int) -> None:
        """Wait until the guest's kernel has taken in what was plugged."""
        watch = _Watch()
        while (found := (await self._settle()).memory) < wanted and await watch.again(found):
            pass
        if found < wanted:
            raise ResourceExhausted(
                f"the guest uses {found // _MIB} MiB, not {wanted // _MIB}", hint="try it again"
            )


@dataclass(frozen=True)
class _Told:
    """What the guest says that it has: processors, bytes, and how many of these are free where its
    kernel keeps its own, and elsewhere."""

    cpus: int
    memory: int
    kernel: int
    movable: int


class _Watch:
    """Whether to wait on for a number that should change."""

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        self._end = self._now() + DEADLINE
        self._last: int | None = None
        self._since = self._now()

    async def again(self, number: int) -> bool:
        """Let a moment pass; false when it has waited long enough."""
        now = self._now()
        if number != self._last:
            self._last, self._since = number, now
        if now >= self._end or now - self._since >= PATIENCE:
            return False
        await asyncio.sleep(_POLL)
        return True


def _place(slot: dict[str, Any]) -> tuple[int, ...]:
    """Where a vCPU is plugged, in the order in which they are."""
    return tuple(slot["props"].get(f"{part}-id", 0) for part in ("socket", "core", "thread"))
