"""Ready VMs of the default shape, restored ahead of the pods that will need them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from cri.pool_size import Limits, PoolSize
from cri.pressure import Memory, Pressure, Reading
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
"""Seconds after a pod took a VM in which more may come."""
UNHURRIED: Final = 0.5
"""The same for a pool that is at least half full: the pod's first moments are its own."""
LOOK: Final = 1.0
"""Seconds between looks at the host's memory and at how many VMs are wanted."""
ONE_AFTER_ANOTHER: Final = 1
"""So many starts at a time leave room: a pool that waited for each would not keep up with them."""

Spawn = Callable[[str], Awaitable[Vm]]
Kill = Callable[[Vm], Awaitable[None]]


class Pool:
    """A queue of ready VMs, refilled in the background; every VM in it has a live shim.

    `refill` makes the VMs that wait. When there is none, or for another shape, `take` has one made
    on the spot by `spawn`, the same path, a few at a time: more would all be late. A VM
    whose shim dies while it waits is thrown away and replaced. After a failure the pool waits,
    longer each time, before it tries again.

    `cri.pool_size` says how many are to wait, and none are while the host's memory is short
    (`cri.pressure`): those that wait end then, and pods have theirs restored on the spot.
    """

    def __init__(
        self,
        shape: str,
        limits: Limits,
        *,
        refill: Spawn,
        spawn: Spawn,
        kill: Kill,
        memory: Callable[[], Reading | None] | None = None,
        first_delay: float = FIRST_DELAY,
        look: float = LOOK,
    ) -> None:
        self.shape = shape
        self.limits = limits
        self.error = ""
        self.starting = 0
        self.hits = 0
        """VMs that pods found here."""
        self.misses = 0
        """VMs that were restored on the spot."""
        self.aim = limits.floor
        """`size` at the last look."""
        self._refill, self._spawn, self._kill = refill, spawn, kill
        self._memory = memory or Memory().read
        self._first_delay, self._look = first_delay, look
        self._sizes = PoolSize(limits.floor, limits.ceiling, limits.parallel)
        self._pressure = Pressure(limits.pressure)
        self._leaving: dict[str, Vm] = {}
        self._ready: deque[Vm] = deque()
        self._wanted = asyncio.Event()
        self._tasks = Tasks()
        self._spot = asyncio.Semaphore(limits.on_the_spot)
        self._restoring = 0
        self._under_way = 0
        self._taken_at = -math.inf
        self._calm = asyncio.Event()
        self._calm.set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def size(self) -> int:
        """How many VMs are to wait now."""
        return 0 if self._pressure.reason else self._target()

    @property
    def pressure(self) -> str:
        """Why none are to wait, in a sentence; empty where memory is not short."""
        return self._pressure.reason

    def _target(self) -> int:
        return self._sizes.wanted(asyncio.get_running_loop().time())

    def start(self, *, refill: bool = True) -> None:
        """Begin to look after the pool, and to fill it."""
        self._tasks.start(self._tend(), "pool size")
        if refill:
            self._wanted.set()
            for number in range(self.limits.parallel):
                self._tasks.start(self._fill(), f"pool refill {number}")

    def adopt(self, vm: Vm) -> bool:
        """Put a VM that a former daemon left into the pool; False when it is full."""
        if self._closed or vm.shape != self.shape or len(self._ready) >= self.size:
            return False
        self._put(vm)
        return True

    async def take(self, shape: str) -> Vm:
        """A ready VM: from the pool, or restored for the caller. Raises what the restore raises."""
        if shape == self.shape and not self._pressure.reason:
            self._sizes.arrived(asyncio.get_running_loop().time())
        if (vm := await self._ready_one(shape)) is not None:
            return vm
        # No refilling while a pod waits for a VM.
        self._restoring += 1
        try:
            async with self._spot:
                if (vm := await self._ready_one(shape)) is None:
                    self.misses += 1
                    vm = await self._spawn(shape)
                return vm
        finally:
            self._restoring -= 1
            self._wanted.set()

    @contextlib.contextmanager
    def giving_way(self) -> Iterator[None]:
        """While several pods or containers start in blocks like this, refilling waits, up to
        `PATIENCE`."""
        self._start_or_end(1)
        try:
            yield
        finally:
            self._start_or_end(-1)

    def _start_or_end(self, more: int) -> None:
        self._under_way += more
        if self._under_way > ONE_AFTER_ANOTHER:
            self._calm.clear()
        else:
            self._calm.set()

    async def _give_way(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                # Both a further pod and an emptier pool change how long; neither is an event.
                while (left := self._taken_at + self._settle() - loop.time()) > 0:  # noqa: ASYNC110
                    await asyncio.sleep(min(left, SETTLE))
                await self._calm.wait()

    def _settle(self) -> float:
        return UNHURRIED if 2 * len(self._ready) >= self.size else SETTLE

    async def _ready_one(self, shape: str) -> Vm | None:
        while shape == self.shape and self._ready:
            vm = self._ready.popleft()
            self._taken_at = asyncio.get_running_loop().time()
            self._wanted.set()
            if vm.shim is not None and not vm.shim.closed.is_set():
                self.hits += 1
                return vm
            await self._end(vm)
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
            await self._end(vm)
            self._wanted.set()

    async def _end(self, vm: Vm) -> None:
        """Kill a VM that waits no more; `close` does it again when it comes between."""
        self._leaving[vm.id] = vm
        await self._kill(vm)
        del self._leaving[vm.id]

    async def _tend(self) -> None:
        while True:
            self._judge_memory()
            await self._shrink()
            self.aim = self.size
            if len(self._ready) + self.starting < self.size:
                self._wanted.set()
            await asyncio.sleep(self._look)

    def _judge_memory(self) -> None:
        if (reading := self._memory()) is None:
            return
        before = self._pressure.reason
        room = max(0, self._target() - len(self._ready)) * self.limits.reserve_mib
        self._pressure.update(reading, asyncio.get_running_loop().time(), room)
        if self._pressure.reason and not before:
            # It comes back as on a fresh node, not as large as it was when memory became short.
            self._sizes.forget()
            log.warning("memory is short, no VM waits: %s", self._pressure.reason)
        elif before and not self._pressure.reason:
            log.info("memory is no longer short, the pool is filled again")

    async def _shrink(self) -> None:
        over = [self._ready.pop() for _ in range(len(self._ready) - self.size)]
        await asyncio.gather(*(self._end(vm) for vm in over))

    async def _fill(self) -> None:
        delay = self._first_delay
        while not self._closed:
            await self._shrink()
            if self._restoring or len(self._ready) + self.starting >= self.size:
                self._wanted.clear()
                await self._wanted.wait()
                await self._give_way()
                continue
            self.starting += 1
            begun = asyncio.get_running_loop().time()
            try:
                vm = await self._refill(self.shape)
            except ThawError as error:
                self.error = str(error)
                log.warning("the pool could not restore a VM: %s; again in %g s", error, delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY)
            else:
                self.error, delay = "", self._first_delay
                self._sizes.restored(asyncio.get_running_loop().time() - begun)
                self._put(vm)
            finally:
                self.starting -= 1

    async def close(self) -> None:
        """Stop refilling and kill what waits. Idempotent."""
        self._closed = True
        await self._tasks.close()
        waiting = [*self._ready, *self._leaving.values()]
        self._ready.clear()
        await asyncio.gather(*(self._kill(vm) for vm in waiting), return_exceptions=True)
