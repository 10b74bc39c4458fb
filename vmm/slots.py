"""The slots of a VM for disks: which are filled, and how one is filled and emptied."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hostlib import failpoint, linux
from hostlib.errors import FailedPrecondition, InvalidArgument, ThawError
from vmm.qemu import argv

if TYPE_CHECKING:
    from vmm.microvm import MicroVM


class Slots:
    """The slots of one VM, all empty at first. Calls take turns."""

    def __init__(self, vm: MicroVM) -> None:
        self._vm = vm
        self._fdsets: dict[int, int] = {}
        """QEMU's number of the descriptor in each filled slot."""
        self._turn = asyncio.Lock()

    async def attach(self, slot: int, source: Path | int, *, read_only: bool = True) -> None:
        """Put a disk image, by path or descriptor, into an empty slot.

        Slots 0 to 11 are read-only, 12 to 15 read-write; the guest sees the slot as LUN. Raises
        `InvalidArgument` for a slot of the other kind, `FailedPrecondition` when it is filled or
        the image does not open, `VmDied`.
        """
        if not 0 <= slot < argv.SLOTS or read_only != argv.is_read_only(slot):
            kind = "read-only" if read_only else "read-write"
            raise InvalidArgument(f"there is no {kind} slot {slot}")
        await failpoint.hit("vm.attach")
        async with self._turn:
            self._vm.require_restored()
            if slot in self._fdsets:
                raise FailedPrecondition(f"slot {slot} is in use")
            if isinstance(source, int):
                await self._fill(slot, source, read_only)
                return
            try:
                # Layers are other pods' too.
                descriptor = (
                    linux.open_read_only(str(source))
                    if read_only
                    else os.open(source, os.O_RDWR | os.O_CLOEXEC)
                )
            except OSError as error:
                raise FailedPrecondition(
                    f"disk image {source} does not open: {error.strerror}"
                ) from error
            try:
                await self._fill(slot, descriptor, read_only)
            finally:
                os.close(descriptor)

    async def _fill(self, slot: int, descriptor: int, read_only: bool) -> None:
        # Own numbers: a set left over from a failed attempt must not be used again.
        is_device = stat.S_ISBLK(os.fstat(descriptor).st_mode)
        added = await self._vm.monitor("add-fd", {}, fd=descriptor)
        fdset = int(added["fdset-id"])
        done: list[tuple[str, dict[str, Any]]] = [("remove-fd", {"fdset-id": fdset})]
        try:
            await self._vm.monitor(
                "blockdev-add",
                {
                    "driver": "raw",
                    "node-name": f"n{slot}",
                    "read-only": read_only,
                    "file": {
                        "driver": "host_device" if is_device else "file",
                        "filename": f"/dev/fdset/{fdset}",
                        "locking": "off",
                        "read-only": read_only,
                    },
                },
            )
            done.append(("blockdev-del", {"node-name": f"n{slot}"}))
            await self._set_drive(slot, f"n{slot}")
        except ThawError:
            for command, arguments in reversed(done):
                with contextlib.suppress(ThawError):
                    await self._vm.monitor(command, arguments)
            raise
        self._fdsets[slot] = fdset

    async def detach(self, slot: int) -> None:
        """Empty a slot that the guest no longer uses. Idempotent. Raises `VmDied`."""
        async with self._turn:
            if slot not in self._fdsets:
                return
            self._vm.require_restored()
            await self._set_drive(slot, f"e{slot}")
            await self._vm.monitor("blockdev-del", {"node-name": f"n{slot}"})
            await self._vm.monitor("remove-fd", {"fdset-id": self._fdsets.pop(slot)})

    async def _set_drive(self, slot: int, node: str) -> None:
        await self._vm.monitor(
            "qom-set", {"path": f"/machine/peripheral/d{slot}", "property": "drive", "value": node}
        )
