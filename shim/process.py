"""A shim's process: gives birth to a microVM, then serves its pod until told to end.

However this process ends, QEMU ends with it (parent-death signal), and the records stay whole: each
is replaced by one rename.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import logging.handlers
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from hostlib import cgroup, failpoint, linux
from hostlib import log as logs
from hostlib.errors import FailedPrecondition, InvalidArgument, ThawError
from hostlib.tasks import Tasks
from shim import params as read
from shim import protocol, records, sandbox, streaming
from shim.plan import Plan
from shim.pod import Pod
from shim.protocol import Message, Wire
from shim.records import ContainerRecord, PodRecord, ShimConfig, VMRecord
from shim.server import Answer, Server
from vmm import accel, bake, restore, snapshot, tap
from vmm.microvm import MicroVM
from vmm.shape import MachineShape

log = logging.getLogger(__name__)

IDLE_LIMIT: Final = 60.0
"""Seconds for which an unbound shim waits for a daemon."""

LOG_BYTES: Final = 1024 * 1024
_THREADS: Final = 2


class Shim:
    """One shim: its server, and its pod as soon as the VM stands."""

    def __init__(self, vm_id: str, folder: Path, config: ShimConfig, ram: int) -> None:
        self._config = config
        self._folder = folder
        self._ram = ram
        self._pod: Pod | None = None
        self._standing: Wire | None = None
        self._stop = asyncio.Event()
        self._tasks = Tasks()
        pid = os.getpid()
        self._record = VMRecord(
            vm_id,
            pid,
            linux.start_time(pid) or 0,
            shape=config.shape,
            netns=config.netns,
            tap=config.tap_name,
            scratch=str(records.scratch_disk(Path(config.scratch_dir), vm_id)),
        )
        self._server = Server(
            {
                "describe": self._describe,
                "ram": self._ram_of,
                "bind": self._bind,
                "pod.stop": self._pod_stop,
                "container.create": self._create,
                "container.start": self._start,
                "container.stop": self._container_stop,
                "container.remove": self._remove,
                "container.update": self._update,
                "container.reopen_log": self._reopen_log,
                "pod.limit": self._pod_limit,
                "pod.resize": self._pod_resize,
                "pod.update": self._pod_update,
                "container.stats": self._stats,
                "pod.stats": self._pod_stats,
                "shutdown": self._shutdown,
                **streaming.handlers(self._require),
            },
            lambda: self._standing,
        )

    async def run(self, control: socket.socket) -> int:
        """Serve until the end; the process's exit code."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_THREADS))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._server.adopt(control)
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        code = 0
        try:
            birth = asyncio.create_task(self._birth(), name="birth")
            await asyncio.wait([birth, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not birth.done():
                birth.cancel()
            await asyncio.wait([birth])
            if birth.cancelled():
                return 0
            self._pod = birth.result()
            self._server.listen(self._folder / records.SOCKET)
            self._say({"event": "ready"})
            self._tasks.start(self._end_when_deserted(self._pod), "daemon watch")
            self._tasks.start(self._end_with_waiting_vm(self._pod), "waiting VM's watch")
            await stopping
            await self._pod.stop("the shim was told to end")
        except Exception as error:
            code = 1
            log.error("the shim failed: %s", error, exc_info=not isinstance(error, ThawError))
            self._say({"event": "failed", "error": protocol.failure(0, error)["error"]})
            await self._wait_for_hello()
        finally:
            stopping.cancel()
            await self._server.flush()
            await self._tasks.close()
            if self._pod is not None:
                await self._pod.vm.kill()
                await self._pod.close()
            await self._server.close()
            Path(self._record.scratch).unlink(missing_ok=True)
        return code

    def _say(self, event: Wire) -> None:
        self._standing = event
        self._server.broadcast(event)

    async def _wait_for_hello(self) -> None:
        """The daemon learns of a failure that came before its greeting too."""
        for _ in range(100):
            if self._server.told or self._server.idle_since is not None:
                return
            await asyncio.sleep(0.02)

    async def _birth(self) -> Pod:
        """Namespaces, tap, disk, VM, agent; rehearsed and paused. Nothing is left on an error."""
        config, folder = self._config, self._folder
        records.write(folder, self._record)
        if config.cgroup:
            self._record = dataclasses.replace(self._record, cgroup=_enter(config.cgroup))
        await failpoint.hit("birth.namespaces")
        share = folder / "share"
        sandbox.make_network_namespace(Path(config.netns))
        sandbox.make_mount_namespace(share, Path(config.netns).parent)
        await failpoint.hit("birth.tap")
        tap_fd = tap.open_tap(config.tap_name)
        try:
            tap.leave_to_namespace(tap_fd)
            # Without a thread, which would be the shim's only one and hold memory for its whole
            # life: no pod depends on it before its VM stands.
            base = snapshot.read(Path(config.snapshot))
            await failpoint.hit("birth.scratch")
            scratch = Path(self._record.scratch)
            sandbox.make_scratch(base.scratch, scratch)
            await failpoint.hit("birth.restore")
            vm = await MicroVM.restore(
                base,
                ram_fd=self._ram,
                tap_fd=tap_fd,
                share=share,
                scratch=scratch,
                accel=bake.accelerator_of(base, accel.probe(config.accel)),
                qemu=config.qemu,
                uid_base=config.uid_base,
            )
        finally:
            # QEMU has its own.
            os.close(tap_fd)
        try:
            self._record = dataclasses.replace(
                self._record,
                snapshot_key=base.key,
                qemu_pid=vm.pid,
                qemu_start_time=linux.start_time(vm.pid) or 0,
            )
            records.write(folder, self._record)
            await self._warm(vm)
            self._record = dataclasses.replace(self._record, state="pooled")
            records.write(folder, self._record)
        except BaseException:
            await vm.kill()
            raise
        return Pod(vm, self._record, folder, self._ram, config.slots, self._server.broadcast)

    async def _warm(self, vm: MicroVM) -> None:
        await vm.resume()
        await vm.connect()
        if self._config.rehearse:
            await vm.rehearse(Path(self._config.rehearsal))
        else:
            await restore.restore_guest(vm)
        await vm.pause()

    async def _end_when_deserted(self, pod: Pod) -> None:
        await self._server.deserted(IDLE_LIMIT)
        # A pod lives on without a daemon.
        if pod.record is None:
            log.info("no daemon for %g s, and no pod: ending", IDLE_LIMIT)
            self._stop.set()

    async def _end_with_waiting_vm(self, pod: Pod) -> None:
        """A VM that dies before it is a pod's is nobody's loss: the daemon sees the shim's end, and
        gives the VM to no pod."""
        await asyncio.wait([pod.vm.exited])
        if pod.record is None:
            log.warning("the VM ended while it waited: %s", pod.vm.exited.result().text)
            self._stop.set()

    # -- requests --------------------------------------------------------------------------

    def _require(self) -> Pod:
        if self._pod is None:
            raise FailedPrecondition("the VM is not ready")
        return self._pod

    async def _describe(self, _params: Wire, _message: Message) -> Answer:
        pod = self._pod
        vm = pod.vm_record if pod else self._record
        bound = pod.record if pod else None
        containers = list(pod.containers.values()) if pod else []
        return Answer(
            {
                "vm_id": vm.id,
                "pid": vm.shim_pid,
                "start_time": vm.shim_start_time,
                "qemu_pid": vm.qemu_pid,
                "snapshot_key": vm.snapshot_key,
                "size": vm.size or vm.shape,
                "region_mib": pod.growth.region_mib if pod else 0,
                "most": dataclasses.asdict(pod.growth.most) if pod else vm.shape,
                "state": vm.state,
                "pod": records.to_dict(bound) if bound else None,
                "containers": [records.to_dict(one.record) for one in containers],
                "reason": vm.reason,
            }
        )

    async def _ram_of(self, _params: Wire, _message: Message) -> Answer:
        return Answer({"key": self._record.snapshot_key}, fds=(self._ram,))

    async def _bind(self, params: Wire, _message: Message) -> Answer:
        pod = self._require()
        record = records.from_dict(PodRecord, params.get("pod"))
        steps, timings = await pod.bind(
            record,
            read.object_of(params, "network"),
            read.object_of(params, "identity"),
            read.object_of(params, "user_namespace") if "user_namespace" in params else None,
        )
        return Answer({"steps": steps, "timings": timings})

    async def _pod_stop(self, _params: Wire, _message: Message) -> Answer:
        await self._require().stop()
        return Answer()

    async def _create(self, params: Wire, message: Message) -> Answer:
        record = records.from_dict(ContainerRecord, params.get("container"))
        plan = Plan.parse(params, message.fds)
        pod = self._require()
        timings = await pod.create_container(record, plan)
        return Answer({"timings": timings, "user": pod.container(record.id).record.user})

    async def _start(self, params: Wire, _message: Message) -> Answer:
        pod = self._require()
        pod.require_running()
        return Answer({"started_at": await pod.container(params.get("id")).start()})

    async def _container_stop(self, params: Wire, _message: Message) -> Answer:
        container = self._require().container(params.get("id"))
        number = params.get("signal", int(signal.SIGTERM))
        if not isinstance(number, int) or not 1 <= number <= signal.NSIG:
            raise InvalidArgument(f"bad signal {number!r}")
        await container.stop(number, read.seconds(params))
        return Answer()

    async def _remove(self, params: Wire, _message: Message) -> Answer:
        await self._require().remove_container(str(params.get("id")))
        return Answer()

    async def _update(self, params: Wire, _message: Message) -> Answer:
        pod = self._require()
        pod.require_running()
        score = params.get("oom_score_adj")
        if score is not None and not isinstance(score, int):
            raise InvalidArgument(f"bad oom_score_adj {score!r}")
        await pod.container(params.get("id")).update(
            read.object_of(params, "resources"),
            score,
            read.object_of(params, "config"),
            str(params.get("guest_cpus", "")),
        )
        return Answer()

    async def _pod_limit(self, params: Wire, _message: Message) -> Answer:
        pod = self._require()
        pod.require_running()
        memory = params.get("memory")
        if not isinstance(memory, int) or memory < 0:
            raise InvalidArgument(f"bad limit {memory!r}")
        await pod.vm.agent.request("pod.limit", {"memory": memory})
        return Answer()

    async def _pod_resize(self, params: Wire, _message: Message) -> Answer:
        pod = self._require()
        vcpus, memory, region = (
            read.positive(params, name) for name in ("vcpus", "memory_mib", "region_mib")
        )
        size = await pod.resize(MachineShape(vcpus, memory), region)
        return Answer(dataclasses.asdict(size))

    async def _pod_update(self, params: Wire, _message: Message) -> Answer:
        pod = self._require()
        pod.require_running()
        pod.update(read.object_of(params, "config"))
        return Answer()

    async def _reopen_log(self, params: Wire, _message: Message) -> Answer:
        self._require().container(params.get("id")).reopen_log()
        return Answer()

    async def _stats(self, params: Wire, _message: Message) -> Answer:
        pod = self._require()
        pod.require_running()
        container = pod.container(params.get("id"))
        return Answer(await pod.vm.agent.request("container.stats", {"id": container.id}))

    async def _pod_stats(self, _params: Wire, _message: Message) -> Answer:
        return Answer(await self._require().stats())

    async def _shutdown(self, _params: Wire, _message: Message) -> Answer:
        # What ends the process flushes the answer first.
        asyncio.get_running_loop().call_soon(self._stop.set)
        return Answer()


def _enter(group: str) -> str:
    try:
        cgroup.create(group)
        cgroup.add(group, os.getpid())
    except (OSError, ThawError) as error:
        log.warning("the VM stays outside cgroup %s: %s", group, error)
        return ""
    return group


def _log_to(folder: Path, vm_id: str) -> None:
    """Send log and standard error into the VM's folder, at most two files of 1 MiB."""
    path = folder / records.LOG
    level = logging.getLogger().level
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(null)
    os.close(descriptor)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1)
    logs.setup(logging.getLevelName(level), process=f"shim {vm_id}")
    root = logging.getLogger()
    handler.setFormatter(root.handlers[0].formatter)
    root.handlers[:] = [handler]


def main(vm_id: str, folder: Path, config: ShimConfig, control: int, ram: int) -> int:
    """A shim's process, forked by the zygote; its exit code."""
    linux.set_process_name(f"thaw-{vm_id}")
    with contextlib.suppress(OSError):
        os.chdir("/")
    _log_to(folder, vm_id)
    failpoint.load_environment()
    sock = socket.socket(fileno=control)
    # The zygote's objects are frozen: collecting ours touches none of the pages that are shared.
    gc.enable()

    async def run() -> int:
        return await Shim(vm_id, folder, config, ram).run(sock)

    return asyncio.run(run())
