"""Block devices of the host in the VM's slots: read-write ones in the few that are, read-only ones
beside the layers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from hostlib import failpoint
from hostlib.errors import FailedPrecondition, ResourceExhausted, ThawError
from shim.layers import Layers, Machine
from shim.plan import Disk

log = logging.getLogger(__name__)

_BUSY_WAITS: Final = 40
_BUSY_WAIT: Final = 0.05
"""Seconds; the guest's kernel ends a mount a little after the last process that saw it."""


class Disks:
    """`slots` are the read-write ones that are free."""

    def __init__(self, layers: Layers, slots: Iterable[int]) -> None:
        self._layers = layers
        self._free = list(slots)
        self._all = len(self._free)

    async def attach(self, vm: Machine, disk: Disk) -> int:
        """Put the disk into a slot; its number. Raises `ResourceExhausted`."""
        slot = self._layers.lend() if disk.read_only else self._take()
        try:
            await failpoint.hit("disk.attach")
            await vm.attach(slot, disk.descriptor, read_only=disk.read_only)
        except BaseException:
            self._give_back(slot, read_only=disk.read_only)
            raise
        return slot

    async def detach(self, vm: Machine, slot: int, *, read_only: bool) -> None:
        """Have the guest write out what it holds of the disk, and take it away."""
        for attempt in range(_BUSY_WAITS):
            try:
                await vm.agent.request("disk.release", {"slot": slot})
                break
            except FailedPrecondition:
                if attempt + 1 < _BUSY_WAITS:
                    await asyncio.sleep(_BUSY_WAIT)
            except ThawError as error:
                log.warning("disk in slot %d: %s", slot, error)
                break
        else:
            log.warning("the guest still uses the disk in slot %d, which is taken away", slot)
        await vm.detach(slot)
        self._give_back(slot, read_only=read_only)

    def _take(self) -> int:
        if not self._free:
            raise ResourceExhausted(
                f"a pod has {self._all} slots for block devices that can be written to",
                hint="give the pod fewer block devices, or some of them read-only",
            )
        return self._free.pop()

    def _give_back(self, slot: int, *, read_only: bool) -> None:
        if read_only:
            self._layers.take_back(slot)
        else:
            self._free.append(slot)
