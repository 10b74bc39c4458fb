"""Image layers in the VM's read-only block slots, shared by the containers of a pod."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from hostlib import failpoint
from hostlib.errors import InvalidArgument, ResourceExhausted

_NAME: Final = re.compile(r"[a-z0-9]{1,64}")


@dataclass(frozen=True)
class Layer:
    """A squashfs image on the host, and its name in the guest."""

    name: str
    path: Path

    @classmethod
    def parse(cls, data: object) -> Layer:
        """The layer in a request. Raises `InvalidArgument`."""
        if not isinstance(data, dict):
            raise InvalidArgument("a layer is no object")
        name, path = data.get("name"), data.get("path")
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise InvalidArgument(f"bad layer name {str(name)[:80]!r}")
        if not isinstance(path, str) or not path.startswith("/"):
            raise InvalidArgument(f"layer {name} has no absolute path")
        return cls(name, Path(path))


class Agent(Protocol):
    """What is asked of the agent here."""

    async def request(
        self, method: str, params: dict[str, Any] | None = None, *, timeout: float = ...
    ) -> dict[str, Any]: ...


class Machine(Protocol):
    """What is asked of the VM here."""

    worker_uid: int

    @property
    def agent(self) -> Any: ...

    async def attach(self, slot: int, source: Path | int, *, read_only: bool = ...) -> None: ...

    async def detach(self, slot: int) -> None: ...


@dataclass
class _Mounted:
    slot: int
    users: int


class Layers:
    """Which layer is in which slot, and how many containers use it."""

    def __init__(self, slots: int) -> None:
        self._free = list(range(slots - 1, -1, -1))
        self._slots = slots
        self._mounted: dict[str, _Mounted] = {}
        self._lock = asyncio.Lock()

    @property
    def in_use(self) -> int:
        """Slots that are filled."""
        return self._slots - len(self._free)

    async def acquire(self, vm: Machine, layers: Sequence[Layer]) -> None:
        """Mount `layers` in the guest, once each however many containers use them.

        All of them or, on an error, none. Raises `ResourceExhausted` when slots are short.
        """
        async with self._lock:
            wanted = list(dict.fromkeys(layers))
            missing = [one for one in wanted if one.name not in self._mounted]
            if len(missing) > len(self._free):
                raise ResourceExhausted(
                    f"the container needs {len(missing)} more layers, the pod has "
                    f"{len(self._free)} of {self._slots} slots free",
                    hint="use an image with fewer layers, or fewer images in one pod",
                )
            taken: list[Layer] = []
            try:
                for layer in wanted:
                    found = self._mounted.get(layer.name)
                    if found is None:
                        await self._mount(vm, layer)
                    else:
                        found.users += 1
                    taken.append(layer)
            except BaseException:
                await self._release(vm, [one.name for one in taken])
                raise

    async def release(self, vm: Machine, names: Sequence[str]) -> None:
        """Give up layers that `acquire` mounted; the last user's unmounts them."""
        async with self._lock:
            await self._release(vm, list(dict.fromkeys(names)))

    def lend(self) -> int:
        """A free slot for something else that is read-only. Raises `ResourceExhausted`."""
        if not self._free:
            raise ResourceExhausted(
                f"the pod has none of {self._slots} read-only slots free",
                hint="use images with fewer layers, or fewer images in one pod",
            )
        return self._free.pop()

    def take_back(self, slot: int) -> None:
        """A slot that was lent is empty again."""
        self._free.append(slot)

    async def _release(self, vm: Machine, names: Sequence[str]) -> None:
        for name in names:
            found = self._mounted.get(name)
            if found is None:
                continue
            found.users -= 1
            if found.users > 0:
                continue
            # Forgotten only when the slot is truly empty: a slot that does not empty is lost.
            del self._mounted[name]
            await vm.agent.request("layer.unmount", {"layer": name})
            await vm.detach(found.slot)
            self._free.append(found.slot)

    async def _mount(self, vm: Machine, layer: Layer) -> None:
        slot = self._free.pop()
        try:
            await failpoint.hit("layer.attach")
            await vm.attach(slot, layer.path)
            try:
                await failpoint.hit("layer.mount")
                await vm.agent.request("layer.mount", {"slot": slot, "layer": layer.name})
            except BaseException:
                await vm.detach(slot)
                raise
        except BaseException:
            self._free.append(slot)
            raise
        self._mounted[layer.name] = _Mounted(slot, 1)
