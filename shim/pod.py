"""The pod in its VM: bound once, by eight steps in order; stopped once, for good.

A pod fails closed: when a step of `bind` is not confirmed, the VM is killed before anything could
reach it or anything of the pod has run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hostlib import failpoint, linux
from hostlib.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ThawError,
    Unavailable,
)
from hostlib.tasks import Tasks
from shim import records
from shim.container import EXIT_KILLED, Container
from shim.disks import Disks
from shim.exec import Execs
from shim.forward import Forwards
from shim.laps import Laps
from shim.layers import Layers
from shim.plan import Plan
from shim.records import EXIT_UNKNOWN, ContainerRecord, PodRecord, VMRecord
from shim.relay import Hangups
from shim.stats import Asker, Bounds, GuestStats
from shim.volumes import Volumes
from vmm import restore
from vmm.growth import Growth
from vmm.microvm import MicroVM
from vmm.qemu import argv
from vmm.shape import MachineShape

log = logging.getLogger(__name__)

MAX_CONTAINERS: Final = 512
_KILL_WAIT: Final = 3.0
_FOR_EVER: Final = 365 * 86400.0

Wire = dict[str, Any]


class Pod:
    """The pod, its containers and its VM. `tell` sends an event to whoever listens."""

    def __init__(
        self,
        vm: MicroVM,
        vm_record: VMRecord,
        folder: Path,
        ram: int,
        slots: int,
        tell: Callable[[Wire], None],
    ) -> None:
        self.vm = vm
        self.vm_record = vm_record
        self.record: PodRecord | None = None
        self.containers: dict[str, Container] = {}
        self.layers = Layers(slots)
        self.volumes = Volumes()
        self.disks = Disks(self.layers, argv.FREE_RW_SLOTS)
        shape = MachineShape(**vm_record.shape)
        self.growth = Growth(vm, shape, vm.most or shape)
        self.stopped = False
        self.reason = ""
        self._folder = folder
        self._ram = ram
        self._tell = tell
        self._hangups = Hangups()
        self.execs = Execs(self._hangups)
        self.forwards = Forwards(self._hangups)
        self._usage: GuestStats | None = None
        self._asker = Asker(lambda: vm.agent.request("pod.stats", timeout=_FOR_EVER))
        self._tasks = Tasks()
        self._bind_lock = asyncio.Lock()
        self._stop_lock = asyncio.Lock()
        self._share_lock = asyncio.Lock()
        self._share_mounted = False
        self._ending = False
        self._tasks.start(self._watch(), "VM watch")
        vm.agent.on_event(self._on_event)

    # -- the VM's end ----------------------------------------------------------------------

    async def _watch(self) -> None:
        """The VM's end, or its agent's, is the pod's."""
        waited: list[asyncio.Future[Any]] = [self.vm.exited, self.vm.agent.closed]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if self._ending:
            return
        if not self.vm.exited.done():
            # QEMU's own end closes the agent's channel first; its reason says more.
            await asyncio.wait([self.vm.exited], timeout=1.0)
        if self.vm.exited.done():
            reason = self.vm.exited.result().text
        else:
            reason = self.vm.agent.closed.result().message
        if not self._begin_end():
            return
        log.error("the VM ended: %s", reason)
        await self._over(reason, EXIT_UNKNOWN)

    async def _over(self, reason: str, exit_code: int) -> None:
        """The VM must go: kill it, record the end of everything. Once; others wait for it."""
        self._begin_end()
        async with self._stop_lock:
            if self.stopped:
                return
            await self.vm.kill()
            self.execs.fail(FailedPrecondition(f"the pod's VM ended: {reason}"))
            await asyncio.gather(
                *(
                    container.ended(exit_code, "Error", reason)
                    for container in tuple(self.containers.values())
                )
            )
            now = time.time_ns()
            self.reason = reason
            self._save_vm(state="stopped", reason=reason)
            if self.record is not None:
                self._save_pod(state="notready", stopped_at=now, reason=reason)
            self.stopped = True
        self._tell({"event": "pod.stopped", "reason": reason, "exited_at": now})

    def _begin_end(self) -> bool:
        """Note that the VM is being ended; False when that was known."""
        known, self._ending = self._ending, True
        return not known

    def _save_vm(self, **changes: Any) -> None:
        record = dataclasses.replace(self.vm_record, **changes)
        try:
            records.write(self._folder, record)
        except OSError as error:
            log.error("record of the VM: %s", error)
        self.vm_record = record

    def _save_pod(self, **changes: Any) -> None:
        assert self.record is not None
        record = dataclasses.replace(self.record, **changes)
        try:
            records.write(self._folder, record)
        except OSError as error:
            log.error("record of the pod: %s", error)
        self.record = record

    def _on_event(self, event: Wire) -> None:
        kind = event.get("event")
        if kind == "container.exit":
            container = self.containers.get(str(event.get("id")))
            if container is not None:
                container.on_guest_exit(event)
        elif kind == "process.exit":
            self.execs.on_exit(event)
        elif kind == "panic":
            log.error("the guest's agent gave up: %s", str(event.get("message"))[:1000])

    def _on_exit(self, record: ContainerRecord) -> None:
        self._tell({"event": "container.exited", "container": records.to_dict(record)})

    # -- bind and stop ---------------------------------------------------------------------

    async def bind(
        self, record: PodRecord, network: Wire, identity: Wire, users: Wire | None = None
    ) -> tuple[list[str], dict[str, int]]:
        """Make the VM this pod's; the steps done, and their times in nanoseconds. `users` are the
        mappings of its user namespace.

        Raises `Unavailable` when the VM is dead, `FailedPrecondition` when it is another pod's. On
        any other error the VM is killed, and the pod recorded as stopped with the reason.
        """
        async with self._bind_lock:
            if self.stopped or self._ending:
                raise Unavailable(f"the VM has ended: {self.reason}")
            if self.record is not None:
                raise FailedPrecondition(f"the VM is bound to pod {self.record.id[:12]}")
            try:
                return await self._bind(record, network, identity, users)
            except BaseException as error:
                said = error.message if isinstance(error, ThawError) else repr(error)
                await asyncio.shield(self._over(f"the pod was not started: {said}", EXIT_UNKNOWN))
                raise

    async def _bind(
        self, record: PodRecord, network: Wire, identity: Wire, users: Wire | None
    ) -> tuple[list[str], dict[str, int]]:
        # The one write that makes the VM the pod's: before it the VM is anybody's.
        record = dataclasses.replace(record, state="ready", stopped_at=0, reason="")
        await failpoint.hit("pod.bind")
        records.write(self._folder, record)
        self.record = record
        timings = await self._restore(network, identity, users)
        self._save_vm(state="running")
        return list(restore.STEPS), timings

    async def _restore(self, network: Wire, identity: Wire, users: Wire | None) -> dict[str, int]:
        laps = Laps()
        with restore.naming("verify"):
            await failpoint.hit("restore.verify")
            if self.vm.exited.done():
                raise Unavailable("the VM has ended")
            if not linux.is_sealed(self._ram):
                raise FailedPrecondition("the VM does not stand on an unchanged snapshot")
        laps.lap("verify")
        # QEMU draws the generation id as it starts, and this VM was bound to no pod before.
        with restore.naming("vmgenid"):
            await failpoint.hit("restore.vmgenid")
        laps.lap("vmgenid")
        await self.vm.resume()
        laps.lap("resume")
        try:
            laps.note(await restore.restore_guest(self.vm, network, identity, users))
        except DeadlineExceeded as error:
            # Whether it hangs, or got no processor: the VM's folder, its log too, goes with it.
            raise DeadlineExceeded(f"{error.message}; {await self.vm.symptoms()}") from error
        laps.lap("guest")
        with restore.naming("ready"):
            await failpoint.hit("restore.ready")
            await restore.trim_clock(self.vm)
        laps.lap("ready")
        return laps.timings

    async def stop(self, reason: str = "stopped") -> None:
        """Kill every container, end the VM. Records stay. Idempotent."""
        if self.stopped:
            return
        await failpoint.hit("pod.stop")
        running = [one for one in self.containers.values() if one.record.state == "running"]
        await asyncio.gather(*(self._kill(one) for one in running))
        await self._over(reason, EXIT_KILLED)

    async def _kill(self, container: Container) -> None:
        try:
            async with asyncio.timeout(_KILL_WAIT):
                await container.stop(int(signal.SIGKILL), 0)
        except (ThawError, TimeoutError) as error:
            # The VM's end is theirs.
            log.warning("container %s: %s", container.id[:12], error)

    def update(self, config: Wire) -> None:
        """Record the sandbox's configuration, changed. Raises OSError; nothing is changed then."""
        assert self.record is not None
        linux = config.get("linux")
        record = dataclasses.replace(
            self.record, config=config, linux=linux if isinstance(linux, dict) else {}
        )
        records.write(self._folder, record)
        self.record = record

    async def resize(self, wanted: MachineShape, region_mib: int) -> MachineShape:
        """Make the VM larger, or smaller again; what it is then. Raises what `Growth` does."""
        self.require_running()
        try:
            return await self.growth.resize(wanted, region_mib)
        finally:
            size = dataclasses.asdict(self.growth.size)
            if size != (self.vm_record.size or self.vm_record.shape) and not self._ending:
                self._save_vm(size=size)
                # For a daemon that came while a former one's request was carried out.
                self._tell({"event": "pod.resized", "size": size})
            if self._usage is not None:
                self._usage.widen(self._bounds())

    # -- containers ------------------------------------------------------------------------

    def require_running(self) -> PodRecord:
        """The pod's record. Raises `FailedPrecondition` unless the pod runs."""
        if self.record is None or self.vm_record.state != "running" or self._ending:
            raise FailedPrecondition("the pod is not running")
        return self.record

    def container(self, container_id: object) -> Container:
        """The container of that id. Raises `NotFound`."""
        found = self.containers.get(str(container_id))
        if found is None:
            raise NotFound(f"there is no container {str(container_id)[:64]} in this pod")
        return found

    async def create_container(self, record: ContainerRecord, plan: Plan) -> dict[str, int]:
        """Create a container; nanoseconds for each step. On an error nothing of it is left."""
        pod = self.require_running()
        if record.pod_id != pod.id:
            raise InvalidArgument(f"container {record.id[:12]} belongs to another pod")
        if record.id in self.containers:
            raise AlreadyExists(f"container {record.id[:12]} exists")
        if len(self.containers) >= MAX_CONTAINERS:
            raise FailedPrecondition(f"the pod has {MAX_CONTAINERS} containers")
        container = Container(
            dataclasses.replace(record, state="created"),
            self._folder,
            self.vm,
            self.layers,
            self.disks,
            self.volumes,
            self._on_exit,
        )
        self.containers[record.id] = container
        try:
            return await container.create(plan, self._mount_share)
        except BaseException:
            del self.containers[record.id]
            await container.close()
            raise

    async def _mount_share(self) -> None:
        async with self._share_lock:
            if not self._share_mounted:
                await self.vm.agent.request("share.mount")
                self._share_mounted = True

    async def remove_container(self, container_id: str) -> None:
        """Remove a container, killing it if need be. Idempotent."""
        container = self.containers.get(container_id)
        if container is None:
            return
        await container.remove(alive=not (self.stopped or self._ending))
        self.containers.pop(container_id, None)

    async def stats(self) -> Wire:
        """What the pod and its containers use, as the guest says, checked.

        Raises `FailedPrecondition` unless the pod runs, `DeadlineExceeded`.
        """
        record = self.require_running()
        answer = await self._asker.answer()
        if self._usage is None:
            self._usage = GuestStats(self._bounds())
        return self._usage.take(answer, self.containers, time.time_ns() - record.created_at)

    def _bounds(self) -> Bounds:
        size = self.growth.size
        try:
            disk = os.stat(self.vm_record.scratch).st_size
        except OSError:
            disk = 0
        return Bounds(size.vcpus, size.memory_bytes, disk)

    def running(self, container_id: object) -> Container:
        """The container of that id. Raises `NotFound`, `FailedPrecondition` unless it runs."""
        self.require_running()
        container = self.container(container_id)
        if container.record.state != "running":
            raise FailedPrecondition(
                f"container {container.id[:12]} is {container.record.state}, not running"
            )
        return container

    def joinable(self, container_id: object) -> Container:
        """The container of that id. Raises `NotFound`, `FailedPrecondition` when it has ended."""
        self.require_running()
        container = self.container(container_id)
        if container.record.state == "exited":
            raise FailedPrecondition(f"container {container.id[:12]} has ended")
        return container

    async def close(self) -> None:
        """End the background work; the VM must have ended."""
        for container in self.containers.values():
            await container.close()
        await self.volumes.close()
        await self.execs.close()
        await self.forwards.close()
        await self._asker.close()
        await self._tasks.close()
        self._hangups.close()
