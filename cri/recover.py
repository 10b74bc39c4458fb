"""A daemon starts: what the former one left is adopted, returned to the pool, or cleared away.

Assumptions: nobody else works in this state folder (it is locked), and shims are the authority
for what they hold. Each shim has a time budget of its own; one that is broken never stops the
start, nor the others.

* bound to a pod, alive: adopted. Alive but silent: its pod stays as its records say, and the shim
  is asked again in the background, then ended;
* bound to a pod, dead: its records say what was; the pod is NOTREADY, its containers have exited;
* unbound, alive, paused, in the pool's cgroup, of the current snapshot: back to the pool, once
  that snapshot is known;
* everything else is killed and removed, and so is every namespace, scratch disk, address and
  cgroup of this instance that belongs to no VM.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cri import growth, processes, settle
from cri.daemon import Daemon, remove_leftovers
from cri.index import Container, Pod
from cri.shims import shape_text
from cri.vms import Shim, Vm, Wire
from hostlib import failpoint, ids
from hostlib.errors import ThawError
from hostlib.tasks import in_thread
from shim import records
from shim.records import ContainerRecord, PodRecord, VMFolder

log = logging.getLogger(__name__)

AT_ONCE: Final = 32
"""Shims that are asked at a time: asked all at once, on a full node, the last ones would have spent
their time waiting for this process."""

PATIENCE: Final = 0.1
"""Seconds after which a shim that has not answered makes room for the next one to be asked."""

SECOND_CHANCE: Final = 30.0
"""Seconds that a shim which lives but does not answer gets before its pod is given up."""


@dataclass
class Recovered:
    """What was found; `spare` are unbound VMs whose snapshot is yet to be judged."""

    pods: int = 0
    lost: int = 0
    spare: list[Vm] = field(default_factory=list)
    cleared: int = 0


async def recover(daemon: Daemon) -> Recovered:
    """Bring the index up from what is on disk and what the shims say."""
    found = Recovered()
    folders = await in_thread(_folders, daemon.vms_folder)
    gate = asyncio.Semaphore(AT_ONCE)
    results = await asyncio.gather(
        *(_paced(gate, _recover_one(daemon, folder, found)) for folder in folders),
        return_exceptions=True,
    )
    for folder, result in zip(folders, results, strict=True):
        if isinstance(result, BaseException):
            log.error("VM %s could not be recovered: %s", folder.name, result, exc_info=result)
    await failpoint.hit("recover.sweep")
    live = {pod.vm.id: pod.record.network.cni for pod in daemon.index.pods if pod.ready}
    live.update({vm.id: {} for vm in found.spare})
    await daemon.network.reconcile(live)
    known = {pod.vm.id for pod in daemon.index.pods} | set(live)
    found.cleared += await in_thread(sweep, daemon, known)
    await in_thread(daemon.cgroups.sweep, known)
    log.info(
        "recovered %d pods (%d lost), %d waiting VMs; cleared %d leftovers",
        found.pods,
        found.lost,
        len(found.spare),
        found.cleared,
    )
    return found


async def return_to_pool(daemon: Daemon, spare: list[Vm]) -> None:
    """Once the base snapshot is known: VMs of that key wait again, others end."""
    current = daemon.snapshots.ready(daemon.config.guest.default_shape)
    while spare:
        vm = spare.pop()
        fits = current is not None and vm.key == current.key
        if not (fits and daemon.pool.adopt(vm)):
            await daemon.kill(vm)


async def end_spare(daemon: Daemon, spare: list[Vm]) -> None:
    """The daemon ends before `return_to_pool` came to them: VMs that no pod needs end with it."""
    await asyncio.gather(*(daemon.kill(vm) for vm in spare), return_exceptions=True)
    spare.clear()


def _folders(vms: Path) -> list[Path]:
    vms.mkdir(mode=0o700, parents=True, exist_ok=True)
    return sorted(path for path in vms.iterdir() if path.is_dir())


async def _paced(gate: asyncio.Semaphore, work: Coroutine[Any, Any, None]) -> None:
    """`work`, begun when its turn comes: its time budget is its own, and none waits for the silence
    of another."""
    async with gate:
        task = asyncio.create_task(work)
        await asyncio.wait([task], timeout=PATIENCE)
    await task


async def _recover_one(daemon: Daemon, folder: Path, found: Recovered) -> None:
    if not ids.is_vm_id(folder.name):
        log.warning("%s is no VM's folder: left alone", folder)
        return
    on_disk = await in_thread(records.read_vm_folder, folder)
    for broken in on_disk.broken:
        log.warning("record %s: %s", broken.path, broken.error)
    vm = _vm(daemon, on_disk)
    try:
        await failpoint.hit("recover.shim")
        described = await _ask(daemon, vm, on_disk)
    except (ThawError, TimeoutError) as error:
        await _without_answer(daemon, vm, on_disk, found, str(error) or "no answer in time")
        return
    pod = described.get("pod")
    if pod is not None:
        _adopt(daemon, vm, described)
        found.pods += 1
        await _offer_ram(daemon, vm)
    elif described.get("state") == "pooled" and not await in_thread(_was_taken, daemon, vm):
        found.spare.append(vm)
        await _offer_ram(daemon, vm)
    else:
        await daemon.kill(vm)
        found.cleared += 1


def _was_taken(daemon: Daemon, vm: Vm) -> bool:
    """Whether a waiting VM is in the cgroup of a pod that never was: with limits, and perhaps under
    a parent, that are not the next pod's. Blocking."""
    vm.cgroup = daemon.cgroups.made_for(vm.id, [pid for pid in (vm.qemu_pid, vm.shim_pid) if pid])
    return bool(vm.cgroup)


def _vm(daemon: Daemon, on_disk: VMFolder) -> Vm:
    record = on_disk.vm
    # Of a record that is lost, the shape is most likely the usual one.
    shape = shape_text(record.shape) if record and record.shape else ""
    shape = shape or daemon.config.guest.default_shape
    vm = Vm(on_disk.id, on_disk.path, daemon.netns_folder / on_disk.id, shape, "", shim=None)
    if record is not None:
        vm.key = record.snapshot_key
        vm.shim_pid, vm.shim_start_time = record.shim_pid, record.shim_start_time
    if on_disk.pod is not None:
        vm.cgroup = daemon.cgroups.path(vm.id, on_disk.pod.cgroup_parent)
    return vm


async def _ask(daemon: Daemon, vm: Vm, on_disk: VMFolder) -> Wire:
    budget = daemon.config.timeouts.adopt_seconds
    async with asyncio.timeout(budget):
        shim: Shim = await daemon.zygote.connect(vm.id, on_disk.socket, timeout=budget)
        try:
            described = await shim.describe()
        except BaseException:
            await shim.close()
            raise
    vm.shim = shim
    vm.described(described)
    vm.key = str(described.get("snapshot_key") or vm.key)
    return described


def _adopt(daemon: Daemon, vm: Vm, described: Wire) -> None:
    pod = Pod(records.from_dict(PodRecord, described["pod"]), vm)
    for each in described.get("containers", ()):
        daemon.index.containers.add(Container(records.from_dict(ContainerRecord, each)))
    daemon.add_pod(pod)
    settle.enter(daemon, vm, settle.config_of(pod), settle.of_pod(daemon, pod))
    settle.begin(daemon, pod)
    # A former daemon may have ended between the two steps of an update.
    growth.begin(daemon, pod, settle.config_of(pod))


async def _offer_ram(daemon: Daemon, vm: Vm) -> None:
    assert vm.shim is not None
    if not daemon.snapshots.wants(vm.key):
        return
    try:
        key, ram = await vm.shim.ram()
    except ThawError as error:
        log.info("the shim of VM %s gave no RAM: %s", vm.id, error)
    else:
        daemon.snapshots.offer(key, ram)


async def _without_answer(
    daemon: Daemon, vm: Vm, on_disk: VMFolder, found: Recovered, error: str
) -> None:
    alive = processes.alive(vm.shim_pid, vm.shim_start_time)
    if on_disk.pod is None:
        await daemon.kill(vm)
        found.cleared += 1
        return
    pod = Pod(on_disk.pod, vm)
    for each in on_disk.containers:
        daemon.index.containers.add(Container(each))
    daemon.add_pod(pod)
    found.pods += 1
    if alive and pod.ready:
        log.warning("the shim of pod %s does not answer yet: %s", pod.id, error)
        daemon.tasks.start(_second_chance(daemon, pod, on_disk), f"adopt pod {pod.id}")
    else:
        found.lost += 1
        await _end_worker(on_disk)
        await daemon.lose(pod, pod.record.reason or "the pod's shim ended while no daemon ran")


async def _end_worker(on_disk: VMFolder) -> None:
    # QEMU dies with its shim (parent-death signal); this is for the instant between.
    if on_disk.vm is not None and on_disk.vm.qemu_pid:
        await processes.ensure_dead(on_disk.vm.qemu_pid, on_disk.vm.qemu_start_time, grace=0.5)


async def _second_chance(daemon: Daemon, pod: Pod, on_disk: VMFolder) -> None:
    vm = pod.vm
    loop = asyncio.get_running_loop()
    end = loop.time() + SECOND_CHANCE
    while loop.time() < end and processes.alive(vm.shim_pid, vm.shim_start_time):
        try:
            described = await _ask(daemon, vm, on_disk)
        except (ThawError, TimeoutError):
            await asyncio.sleep(1.0)
            continue
        if described.get("pod") is not None and daemon.index.pods.exact(pod.id) is pod:
            daemon.forget(pod)
            _adopt(daemon, vm, described)
            log.info("pod %s was adopted late", pod.id)
        return
    await processes.ensure_dead(vm.shim_pid, vm.shim_start_time, grace=0.0)
    await _end_worker(on_disk)
    await daemon.lose(pod, "the pod's shim did not answer and was ended")


def sweep(daemon: Daemon, known: set[str]) -> int:
    """Remove namespaces and scratch disks of VMs that nobody knows. Blocking; how many."""
    names: set[str] = set()
    for folder in (daemon.netns_folder, daemon.scratch_folder):
        if folder.is_dir():
            names.update(entry.split(".")[0] for entry in os.listdir(folder))
    strangers = {name for name in names - known if ids.is_vm_id(name)}
    for name in strangers:
        remove_leftovers(
            daemon.vms_folder / name,
            daemon.netns_folder / name,
            daemon.scratch_folder,
            name,
        )
    return len(strangers)
