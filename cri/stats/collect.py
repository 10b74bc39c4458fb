"""Readings of pods: what the guest says, by one call for a pod, and what the VM costs the host.

A guest that does not answer in time costs its own pod that half of its reading, and others nothing:
pods are read side by side, a bounded number at a time, and each within the shim's deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final

from cri.index import Index, Pod, Written
from cri.stats import host
from cri.stats.host import HostUsage
from cri.vms import Wire
from hostlib.errors import ThawError
from hostlib.tasks import SingleFlight, in_thread

log = logging.getLogger(__name__)

AT_ONCE: Final = 64
"""Pods that are read at a time."""


@dataclass(frozen=True)
class Reading:
    """One pod at one time, in nanoseconds. `guest` is what the shim passes on of the guest's words
    (docs/shim-protocol.md), None where it said nothing."""

    at: int
    guest: Wire | None
    host: HostUsage

    def container(self, container_id: str) -> Wire | None:
        if self.guest is None:
            return None
        found: Wire | None = self.guest["containers"].get(container_id)
        return found


class Collector:
    """Reads pods; those who ask for one pod at once share one reading."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._flights: SingleFlight[Reading] = SingleFlight()

    async def read(self, pod: Pod) -> Reading:
        """The pod's reading. Never fails: what is not known is absent."""
        return await self._flights.run(pod.id, lambda: self._read(pod))

    async def _read(self, pod: Pod) -> Reading:
        vm = pod.vm
        pids = [pid for pid in (vm.qemu_pid, vm.shim_pid) if pid]
        guest, cost = await asyncio.gather(
            self._ask(pod), in_thread(host.read, vm.cgroup, pids if pod.ready else [])
        )
        reading = Reading(time.time_ns(), guest, cost)
        for each in self._index.containers_of(pod.id):
            said = reading.container(each.id)
            if said is not None and said["upper"] is not None:
                upper = said["upper"]
                each.written = Written(reading.at, upper["bytes"], upper["inodes"])
        return reading

    @staticmethod
    async def _ask(pod: Pod) -> Wire | None:
        shim = pod.vm.shim
        if shim is None or shim.closed.is_set() or not pod.ready:
            return None
        try:
            return await shim.pod_stats()
        except ThawError as error:
            log.info("pod %s does not say what it uses: %s", pod.id, error)
            return None

    async def each(self, pods: Iterable[Pod]) -> AsyncIterator[tuple[Pod, Reading]]:
        """The pods in order with their readings, `AT_ONCE` of them under way; a reader that waits
        holds up no more than these."""
        under_way: deque[tuple[Pod, asyncio.Task[Reading]]] = deque()
        rest = iter(pods)
        try:
            while True:
                while len(under_way) < AT_ONCE and (pod := next(rest, None)) is not None:
                    if self._index.pods.exact(pod.id) is pod:
                        task = asyncio.create_task(self.read(pod), name=f"stats of {pod.id}")
                        under_way.append((pod, task))
                if not under_way:
                    return
                pod, task = under_way[0]
                reading = await task
                under_way.popleft()
                yield pod, reading
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
