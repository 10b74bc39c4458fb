"""What the verbs work on: images, network, snapshots, the pool, the index, and the life of VMs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cri import cgroups, growth, processes
from cri.api import v1_pb2 as v1
from cri.config import Config
from cri.events import Events
from cri.index import Container, Index, Names, Pod
from cri.network.api import TAP, PodIdentity, PodNetwork
from cri.pool import Pool
from cri.pool_size import limits
from cri.pressure import Memory
from cri.shapes import Size
from cri.shims import shape_wire
from cri.snapshots import Snapshots
from cri.stats.collect import Collector
from cri.streaming.requests import Request
from cri.streaming.server import StreamingServer
from cri.telemetry.telemetry import Telemetry
from cri.trace import Trace, Traces
from cri.vms import Shim, Vm, Wire, Zygote
from hostlib import failpoint, ids, linux
from hostlib.errors import FailedPrecondition, InvalidArgument, NotFound, ThawError, Unavailable
from hostlib.tasks import SingleFlight, Tasks, in_thread
from images.model import Image
from images.service import Images
from shim import records
from shim.protocol import Closed
from shim.records import ContainerRecord, ShimConfig

log = logging.getLogger(__name__)

HANDLERS: Final = ("", "thaw")

STOPPED: Final = "stopped"
"""The reason that a shim gives for the end of a pod that it was told to stop."""


def images_of(container: ContainerRecord) -> set[str]:
    """The ids of the images that a container is made of: its own, and those of its volumes."""
    return {container.image.id, *container.volume_images}


@dataclass
class Daemon:
    """One thawd. Built by `cri.main`; tests build it with fakes."""

    config: Config
    images: Images
    network: PodNetwork
    zygote: Zygote
    snapshots: Snapshots
    memory: Memory = field(default_factory=Memory)
    index: Index = field(default_factory=Index)
    traces: Traces = field(default_factory=Traces)
    telemetry: Telemetry = field(default_factory=Telemetry)
    names: Names = field(default_factory=Names)
    events: Events[v1.ContainerEventResponse] = field(default_factory=Events)
    runs: SingleFlight[str] = field(default_factory=SingleFlight)
    tasks: Tasks = field(default_factory=Tasks)
    bound: dict[str, str] = field(default_factory=dict)
    """VM ids of the pods in the index, and the pods' ids."""
    streaming: StreamingServer | None = None
    """Of exec, attach and port-forward; None until it listens."""

    def __post_init__(self) -> None:
        self.collector = Collector(self.index)
        self.cgroups = cgroups.Cgroups(self.config.instance)
        self.node = Size(os.cpu_count() or 1, _memory_mib())
        self.pool = Pool(
            self.config.guest.default_shape,
            limits(self.config.pool, self.node.vcpus, self.node.memory_mib),
            refill=self.refill,
            spawn=self.spawn,
            kill=self.kill,
            memory=self.memory.read,
        )
        self.telemetry.watch(self.index, self.pool, self.images)

    # --- microVMs

    @property
    def vms_folder(self) -> Path:
        return self.config.state / "vms"

    @property
    def netns_folder(self) -> Path:
        return self.config.state / "netns"

    @property
    def scratch_folder(self) -> Path:
        return self.config.root / "scratch"

    def shim_config(self, vm_id: str, shape: str, snapshot: Path, waits: bool) -> ShimConfig:
        guest = self.config.guest.dir
        return ShimConfig(
            instance=self.config.instance,
            snapshot=str(snapshot),
            shape=shape_wire(shape),
            accel=self.config.vm.accel,
            qemu=self.config.vm.qemu,
            scratch_dir=str(self.scratch_folder),
            rehearsal=str(guest / "rehearsal.squashfs"),
            tap_name=TAP,
            netns=str(self.netns_folder / vm_id),
            # What waits has the time for it; a pod that waits has not.
            rehearse=self.config.vm.rehearse and waits,
            slots=self.config.vm.slots,
            uid_base=self.config.vm.uid_base,
            cgroup=self.cgroups.pool if waits else self.cgroups.path(vm_id, ""),
        )

    async def refill(self, shape: str) -> Vm:
        """`spawn` for the pool: it gives way to pods."""
        return await self.spawn(shape, waits=True)

    async def spawn(self, shape: str, *, waits: bool = False) -> Vm:
        """A VM, paused, with its links. When it fails nothing of it is left."""
        begun = time.monotonic()
        try:
            try:
                vm = await self._spawn(shape, waits)
            except Closed as error:
                # The zygote, or the shim, died under the call; a new zygote serves a second one.
                log.warning("a microVM was lost as it was made, and is made again: %s", error)
                vm = await self._spawn(shape, waits)
        except ThawError as error:
            self.telemetry.not_restored(waits, error.code)
            raise
        self.telemetry.restored(waits, time.monotonic() - begun)
        return vm

    async def _spawn(self, shape: str, waits: bool) -> Vm:
        self.network.check_room()
        snapshot = await self.snapshots.ensure(shape)
        vm_id = ids.new_vm_id()
        vm = Vm(
            vm_id,
            self.vms_folder / vm_id,
            self.netns_folder / vm_id,
            shape,
            snapshot.key,
            shim=None,
        )
        try:
            await in_thread(lambda: vm.folder.mkdir(mode=0o700, parents=True))
            await failpoint.hit("pool.spawn")
            async with asyncio.timeout(self.config.timeouts.spawn_seconds):
                config = self.shim_config(vm_id, shape, snapshot.path, waits)
                vm.shim = await self.zygote.spawn(vm_id, vm.folder, config, snapshot.ram)
                await self.network.prepare(vm_id, vm.netns)
            vm.described(await vm.shim.describe())
        except TimeoutError as error:
            await self._undo(vm)
            raise Unavailable(
                f"a microVM was not ready within {self.config.timeouts.spawn_seconds:g} s",
                hint="the host may be overloaded; see timeouts.spawn_seconds",
            ) from error
        except BaseException:
            await self._undo(vm)
            raise
        return vm

    async def _undo(self, vm: Vm) -> None:
        await asyncio.shield(self.tasks.start(self.kill(vm), f"undo {vm.id}"))

    async def kill(self, vm: Vm) -> None:
        """End a VM that no pod needs, and remove all that is its own. Never fails; idempotent."""
        await self.end_shim(vm)
        with contextlib.suppress(ThawError):
            await self.network.discard(vm.id, vm.netns)
        await self.clean(vm)

    async def end_stopped(self, vm: Vm) -> None:
        """The shim of a stopped pod ends: its VM is dead, its records are forgotten with it, so
        nothing is lost by a kill, which takes no time."""
        if vm.shim is not None:
            await vm.shim.close()
        vm.shim = None
        if vm.shim_pid:
            await processes.ensure_dead(vm.shim_pid, vm.shim_start_time, grace=0.0)

    async def end_shim(self, vm: Vm) -> None:
        """The shim ends, by request or by force, and its VM with it."""
        if not vm.shim_pid:
            known = await in_thread(records.read_vm_folder, vm.folder)
            if known.vm is not None:
                vm.shim_pid = known.vm.shim_pid
                vm.shim_start_time = known.vm.shim_start_time
        told = False
        if vm.shim is not None and not vm.shim.closed.is_set():
            try:
                async with asyncio.timeout(5):
                    await vm.shim.shutdown()
                told = True
            except (ThawError, TimeoutError) as error:
                log.warning("the shim of VM %s did not end by itself: %s", vm.id, error)
            await vm.shim.close()
        vm.shim = None
        if vm.shim_pid:
            # One that was not asked to end, being born or deaf, does not end by itself.
            grace = 2.0 if told else 0.0
            await processes.ensure_dead(vm.shim_pid, vm.shim_start_time, grace=grace)

    async def clean(self, vm: Vm) -> None:
        """Remove what a VM that is dead leaves: cgroup, namespace, scratch disk, folder.
        Idempotent."""
        if vm.entering is not None:
            await asyncio.wait([vm.entering])

        def work() -> None:
            # The folder goes last: its records say where the rest is.
            self.cgroups.remove(vm.id, vm.cgroup)
            remove_leftovers(vm.folder, vm.netns, self.scratch_folder, vm.id)

        await in_thread(work)

    # --- pods

    def shim_of(self, pod: Pod) -> Shim:
        """The live shim of a pod. Raises `Unavailable`."""
        shim = pod.vm.shim
        if shim is None or shim.closed.is_set():
            raise Unavailable(f"the shim of pod {pod.id} does not answer")
        return shim

    def pod_of(self, container: ContainerRecord) -> Pod:
        return self.index.pods.find(container.pod_id)

    def add_pod(self, pod: Pod) -> None:
        """Into the index; from now on its shim's end is seen."""
        self.index.pods.add(pod)
        self.bound[pod.vm.id] = pod.id
        if pod.vm.shim is not None:
            self.tasks.start(self._watch(pod, pod.vm.shim), f"watch pod {pod.id}")

    async def _watch(self, pod: Pod, shim: Shim) -> None:
        await shim.closed.wait()
        if self.index.pods.exact(pod.id) is not pod or pod.vm.shim is not shim:
            return
        pod.vm.shim = None
        pid, start = pod.vm.shim_pid, pod.vm.shim_start_time
        if pid:
            await processes.ensure_dead(pid, start, grace=1.0)
        await self.lose(pod, "the pod's shim ended unexpectedly")

    async def lose(self, pod: Pod, reason: str) -> None:
        """The shim of a pod is dead: what it can no longer say is said here, on disk too."""
        if pod.ready:
            log.warning("pod %s (%s): %s", pod.record.metadata.name, pod.id, reason)
            self.telemetry.lost("shim")
        self.index.pod_stopped(pod, reason, time.time_ns())
        containers = [each.record for each in self.index.containers_of(pod.id)]

        def write() -> None:
            records.write(pod.vm.folder, pod.record)
            for each in containers:
                records.write(pod.vm.folder, each)

        with contextlib.suppress(OSError):
            await in_thread(write)

    def trace_of(self, pod: Pod) -> Trace:
        """Where the steps of a pod's start are noted; a new one where a former daemon began it."""
        metadata = pod.record.metadata
        return self.traces.of(pod.id) or self.traces.begin(
            pod.id, metadata.name, metadata.namespace
        )

    def forget(self, pod: Pod) -> None:
        self.index.forget_pod(pod.id)
        self.bound.pop(pod.vm.id, None)

    @staticmethod
    def network_identity(pod: Pod) -> PodIdentity:
        metadata = pod.record.metadata
        return PodIdentity(pod.id, metadata.name, metadata.namespace, metadata.uid)

    def handle_event(self, vm_id: str, event: Wire) -> None:
        """What a shim tells unasked."""
        pod = self.index.pods.exact(self.bound.get(vm_id, ""))
        if pod is None:
            return
        name = event.get("event")
        if name == "container.exited":
            with contextlib.suppress(InvalidArgument):
                record = records.from_dict(ContainerRecord, event.get("container"))
                self.index.update_container(record)
        elif name == "pod.resized":
            growth.heard(self, pod, event.get("size"))
        elif name == "pod.stopped":
            at = int(event.get("exited_at") or time.time_ns())
            reason = str(event.get("reason") or "")
            if pod.ready and reason != STOPPED:
                self.telemetry.lost("vm")
            self.index.pod_stopped(pod, reason, at)

    # --- containers and images

    def running_container(self, text: str) -> tuple[Container, Pod]:
        """A container that runs, and its pod. Raises `NotFound`, `FailedPrecondition`."""
        container = self.index.containers.find(text)
        if container.record.state != "running":
            raise FailedPrecondition(
                f"container {container.id} is {container.record.state}, not running"
            )
        return container, self.pod_of(container.record)

    def joinable_container(self, text: str) -> tuple[Container, Pod]:
        """A container that runs, or was not started yet, so that who joins it then misses nothing;
        and its pod. Raises `NotFound`, `FailedPrecondition`."""
        container = self.index.containers.find(text)
        if container.record.state == "exited":
            raise FailedPrecondition(f"container {container.id} has ended")
        return container, self.pod_of(container.record)

    def streaming_url(self, request: Request) -> str:
        """A one-shot URL. Raises `Unavailable` and `ResourceExhausted`."""
        if self.streaming is None:
            raise Unavailable("the streaming server does not listen yet")
        return self.streaming.url(request)

    def find_image(self, ref: str) -> Image:
        """The image of that name or id. Raises `NotFound`."""
        if not ref:
            raise InvalidArgument("no image given")
        image = self.images.get(ref)
        if image is None:
            raise NotFound(f"image {ref} is not here", hint="pull it first")
        return image

    def hold_images(self, container: ContainerRecord) -> None:
        """Keep the layers of all that the container is made of. Raises `NotFound`."""
        for image in images_of(container):
            self.images.hold(image, f"{container.id}/{image}")

    def release_images(self, container: ContainerRecord) -> None:
        """The container is gone; the layers of an image that was removed meanwhile go too."""
        images = images_of(container)
        for image in images:
            self.images.release(f"{container.id}/{image}")
        if any(self.images.get(image) is None for image in images):
            self.tasks.start(self.images.collect(), "collect layers")

    # --- the daemon's own life

    async def keep_base_ready(self) -> None:
        """Bake the default shape, again and again until it works, then keep the pool filled."""
        shape = self.config.guest.default_shape
        delay = 5.0
        while self.snapshots.ready(shape) is None:
            try:
                async with asyncio.timeout(self.config.timeouts.bake_seconds):
                    await self.snapshots.ensure(shape)
            except (ThawError, TimeoutError) as error:
                text = str(error) or "it took too long (timeouts.bake_seconds)"
                self.snapshots.state(shape).error = text
                log.error("the base snapshot could not be baked: %s; again in %g s", text, delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 60.0)

    async def close(self) -> None:
        """Let go of everything; pods run on."""
        await self.pool.close()
        await self.tasks.close()
        for pod in self.index.pods:
            if pod.vm.shim is not None:
                shim, pod.vm.shim = pod.vm.shim, None
                await shim.close()
        await self.snapshots.close()


def _memory_mib() -> int:
    """The host's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20


def remove_leftovers(folder: Path, netns: Path, scratch: Path, vm_id: str) -> None:
    """What a dead VM leaves on the host. Blocking; idempotent."""
    for _ in range(4):
        try:
            linux.umount(str(netns))
        except OSError:
            break
    netns.unlink(missing_ok=True)
    records.scratch_disk(scratch, vm_id).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
