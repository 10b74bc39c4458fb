"""Ready VMs of the default shape, restored ahead of the pods that will need them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from cri.vms import Vm
from hostlib.errors import ThawError
from hostlib.tasks import Tasks

log = logging.getLogger(__name__)

FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 30.0
PATIENCE: Final = 1.0
"""Seconds for which refilling gives way to pods that start: under a steady stream of them the pool
would never be filled."""
SETTLE: Final = 0.1
"""Seconds without a call that starts something, after which a pod is taken to be up."""

Spawn = Callable[[str], Awaitable[Vm]]
Kill = Callable[[Vm], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """`size` VMs wait, `parallel` are restored for the pool at a time, `on_the_spot` for pods that
    found it empty; see `capacity`."""

    size: int
    parallel: int = 1
    on_the_spot: int = 4
    max_memory_mib: int = 4096
    reserve_mib: int = 64

    @property
    def capacity(self) -> int:
        """How many VMs may wait: fewer than `size` where memory is the limit."""
        return min(self.size, self.max_memory_mib // self.reserve_mib)


class Pool:
    """A queue of ready VMs, refilled in the background; every VM in it has a live shim.

    `refill` makes the VMs that wait. When there is none, or for another shape, `take` has one made
    on the spot by `spawn`, the same path, a few at a time: more would all be late. A VM
    whose shim dies while it waits is thrown away and replaced. After a failure the pool waits,
    longer each time, before it tries again.
    """

    def __init__(
        self,
        shape: str,
        limits: Limits,
        *,
        refill: Spawn,
        spawn: Spawn,
        kill: Kill,
        first_delay: float = FIRST_DELAY,
    ) -> None:
        self.shape = shape
        self.limits = limits
        self.error = ""
        self.starting = 0
        self._refill, self._spawn, self._kill = refill, spawn, kill
        self._first_delay = first_delay
        self._ready: deque[Vm] = deque()
        self._wanted = asyncio.Event()
        self._tasks = Tasks()
        self._spot = asyncio.Semaphore(limits.on_the_spot)
        self._restoring = 0
        self._under_way = 0
        self._calls = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._ready)

    def start(self) -> None:
        """Begin to fill the pool."""
        self._wanted.set()
        for number in range(self.limits.parallel):
            self._tasks.start(self._fill(), f"pool refill {number}")

    def adopt(self, vm: Vm) -> bool:
        """Put a VM that a former daemon left into the pool; False when it is full."""
        if self._closed or vm.shape != self.shape or len(self._ready) >= self.limits.capacity:
            return False
        self._put(vm)
        return True

    async def take(self, shape: str) -> Vm:
        """A ready VM: from the pool, or restored for the caller. Raises what the restore raises."""
        if (vm := await self._ready_one(shape)) is not None:
            return vm
        # No refilling while a pod waits for a VM.
        self._restoring += 1
        try:
            async with self._spot:
                return await self._ready_one(shape) or await self._spawn(shape)
        finally:
            self._restoring -= 1
            self._wanted.set()

    @contextlib.contextmanager
    def giving_way(self) -> Iterator[None]:
        """While a pod or container starts in this block, refilling waits, up to `PATIENCE`."""
        self._under_way += 1
        self._calls += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._calls += 1

    async def _give_way(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                seen = -1
                while self._under_way or seen != self._calls:
                    seen = self._calls
                    await asyncio.sleep(SETTLE)

    async def _ready_one(self, shape: str) -> Vm | None:
        while shape == self.shape and self._ready:
            vm = self._ready.popleft()
            self._wanted.set()
            if vm.shim is not None and not vm.shim.closed.is_set():
                return vm
            await self._kill(vm)
        return None

    def _put(self, vm: Vm) -> None:
        self._ready.append(vm)
        self._tasks.start(self._watch(vm), f"pool watch {vm.id}")

    async def _watch(self, vm: Vm) -> None:
        assert vm.shim is not None
        await vm.shim.closed.wait()
        if vm in self._ready:
            self._ready.remove(vm)
            log.warning("VM %s died while it waited in the pool", vm.id)
            await self._kill(vm)
            self._wanted.set()

    async def _fill(self) -> None:
        delay = self._first_delay
        while not self._closed:
            if self._restoring or len(self._ready) + self.starting >= self.limits.capacity:
                self._wanted.clear()
                await self._wanted.wait()
                await self._give_way()
                continue
            self.starting += 1
            try:
                vm = await self._refill(self.shape)
            except ThawError as error:
                self.error = str(error)
                log.warning("the pool could not restore a VM: %s; again in %g s", error, delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY)
            else:
                self.error, delay = "", self._first_delay
                self._put(vm)
            finally:
                self.starting -= 1

    async def close(self) -> None:
        """Stop refilling and kill what waits. Idempotent."""
        self._closed = True
        await self._tasks.close()
        waiting = list(self._ready)
        self._ready.clear()
        await asyncio.gather(*(self._kill(vm) for vm in waiting), return_exceptions=True)
