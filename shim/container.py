"""A container of the pod: its states, its record, its streams and what it holds of the VM.

::

    created --start--> running --exit--> exited
       |                                   ^
       +------ start failed, VM died ------+

Each change is written to the container's record first. `remove` is right in every state.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from hostlib import failpoint
from hostlib.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    NotFound,
    ThawError,
    Unavailable,
)
from hostlib.tasks import Tasks, in_thread
from shim import owners, records, sandbox
from shim.attach import Audience, Client
from shim.disks import Disks
from shim.laps import Laps
from shim.layers import Layers, Machine
from shim.log import LogWriter, StreamName
from shim.plan import Plan
from shim.records import EXIT_UNKNOWN, ContainerRecord
from shim.streams import drain
from shim.volumes import Volumes

log = logging.getLogger(__name__)

KILL_TIMEOUT: Final = 10.0
"""Seconds for a killed container to be reported as ended."""

DEAF_SECONDS: Final = 0.05
MAX_DEAF_SECONDS: Final = 1.0
"""Seconds between looks whether a container hears its stop signal: at first, and at most."""

MAX_GROUPS: Final = 4096
"""Of a process, as the agent has it."""

EXIT_START_FAILED: Final = 128
"""The exit code of a container whose command could not be started, as containerd has it."""

EXIT_KILLED: Final = 128 + signal.SIGKILL


def user_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What the guest says of the user of a container's process. Raises `Internal` when that is no
    user: the guest's word is checked."""
    said = answer.get("user")
    if said is None:
        return {}
    if isinstance(said, dict):
        groups = said.get("additionalGids")
        ids = [said.get("uid"), said.get("gid")]
        if isinstance(groups, list) and len(groups) <= MAX_GROUPS:
            ids += groups
            if all(type(one) is int and 0 <= one < 2**32 for one in ids):
                return {"uid": ids[0], "gid": ids[1], "additionalGids": groups}
    raise Internal("the guest names a user that is none")


class Container:
    """One container. `on_exit` is told the record once, when it has ended."""

    def __init__(
        self,
        record: ContainerRecord,
        folder: Path,
        vm: Machine,
        layers: Layers,
        disks: Disks,
        volumes: Volumes,
        on_exit: Callable[[ContainerRecord], None],
    ) -> None:
        self.record = record
        self._folder = folder
        self._vm = vm
        self._layers = layers
        self._disks = disks
        self._volumes = volumes
        self._on_exit = on_exit
        self._layer_names: list[str] = []
        self._shares: list[str] = []
        self._kept: list[str] = []
        self._slots: list[tuple[int, bool]] = []
        self._streams: dict[str, Any] = {}
        self._writer: LogWriter | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._tasks = Tasks()
        self._lock = asyncio.Lock()
        self._in_guest = False
        self._audience = Audience(record.id[:12])
        self.exited = asyncio.Event()

    @property
    def id(self) -> str:
        return self.record.id

    def _save(self, **changes: Any) -> None:
        record = dataclasses.replace(self.record, **changes)
        records.write(self._folder, record)
        self.record = record

    async def create(self, plan: Plan, mount_share: Callable[[], Any]) -> dict[str, int]:
        """Prepare the container in the guest; its init waits. Nanoseconds for each step.

        On an error nothing of it is left. `mount_share` makes the guest mount the shared folder.
        """
        laps = Laps()
        records.write(self._folder, self.record)
        laps.lap("record")
        try:
            await failpoint.hit("container.create")
            layers = [*plan.layers, *plan.volumes]
            await self._layers.acquire(self._vm, layers)
            self._layer_names = [layer.name for layer in layers]
            laps.lap("layers")
            for mount, tree in plan.mounts:
                place = await self._volumes.take(self._vm, mount, tree)
                if place is not None:
                    self._kept.append(mount.name)
                    plan.place_volume(mount, place)
                    continue
                if mount.owners is not None:
                    worker = self._vm.worker_uid
                    await in_thread(owners.apply, mount.owners, tree, worker, mount.path)
                sandbox.attach_share(self._folder / "share", mount, tree)
                self._shares.append(mount.name)
            if self._shares:
                await mount_share()
            laps.lap("shares")
            for disk in plan.disks:
                slot = await self._disks.attach(self._vm, disk)
                self._slots.append((slot, disk.read_only))
                plan.place_disk(disk, slot)
            agent = self._vm.agent
            self._streams["stdout"] = agent.open_stream()
            if not self.record.tty:
                self._streams["stderr"] = agent.open_stream()
            if self.record.stdin:
                self._streams["stdin"] = agent.open_stream()
            numbers = {
                name: self._streams[name].id if name in self._streams else 0
                for name in ("stdin", "stdout", "stderr")
            }
            self._in_guest = True
            answer = await agent.request(
                "container.create",
                {
                    "id": self.id,
                    "spec": plan.spec,
                    "layers": [layer.name for layer in plan.layers],
                    "streams": numbers,
                    "terminal": self.record.tty,
                },
            )
            self._save(user=user_of(answer))
            laps.lap("guest")
        except BaseException:
            await self._discard(alive=True)
            records.container_path(self._folder, self.id).unlink(missing_ok=True)
            raise
        return laps.timings

    async def start(self) -> int:
        """Run the container's command; when it started, in nanoseconds.

        Raises `FailedPrecondition` unless it is created. When the command cannot be run, or its log
        not be written, it raises this, too, `InvalidArgument`, `NotFound`, `PermissionDenied` or
        `DeadlineExceeded`: the container has then exited with 128, reason StartError.
        """
        async with self._lock:
            if self.record.state != "created":
                raise FailedPrecondition(
                    f"container {self.id[:12]} is {self.record.state}, not created"
                )
            begun = time.time_ns()
            try:
                if self.record.log_path:
                    self._writer = LogWriter(self.record.log_path)
                await failpoint.hit("container.start")
                await self._vm.agent.request("container.start", {"id": self.id})
            except Unavailable:
                # The VM is dead, whose end is the container's.
                self._close_writer()
                raise
            except ThawError as error:
                now = time.time_ns()
                await self._end(EXIT_START_FAILED, "StartError", error.message, now, begun=begun)
                if isinstance(error, DeadlineExceeded):
                    # What was told to have ended must not run, once the guest comes to it.
                    kill = self._attempt(self._signal(int(signal.SIGKILL), everyone=True))
                    self._tasks.start(kill, f"end of {self.id[:12]}")
                raise
            except BaseException:
                self._close_writer()
                raise
            self._save(state="running", started_at=time.time_ns())
            names: tuple[StreamName, ...] = ("stdout", "stderr")
            for name in names:
                if name in self._streams:
                    work = self._pump(name)
                    self._pumps.append(self._tasks.start(work, f"{name} of {self.id[:12]}"))
            return self.record.started_at

    async def _pump(self, name: StreamName) -> None:
        stream, writer = self._streams[name], self._writer
        try:
            while data := await stream.read():
                if writer is not None:
                    writer.write(name, data)
                self._audience.tell(name, data)
        except ThawError as error:
            log.info("%s of %s ended: %s", name, self.id[:12], error.message)
        finally:
            # The last, unfinished line is logged too.
            if writer is not None:
                writer.finish(name)
            self._audience.finish(name)

    async def attach(self, sockets: Mapping[str, socket.socket]) -> None:
        """Follow the output, and write to the input, with the sockets that there are; they are ours
        from now on.

        Who comes before the start gets all that is written. Raises `FailedPrecondition` when it has
        ended, `ResourceExhausted`.
        """
        if self.record.state == "exited":
            for sock in sockets.values():
                sock.close()
            raise FailedPrecondition(f"container {self.id[:12]} has ended")
        client: Client = []
        # The input last: its end is the end of what is in the list by then.
        for name, sock in sorted(sockets.items(), key=lambda each: each[0] == "stdin"):
            if name != "stdin":
                stream: StreamName = "stderr" if name == "stderr" else "stdout"
                await self._audience.follow(stream, sock, client)
            elif "stdin" in self._streams:
                # A terminal has no end of input that its programs would not see as a key.
                once = self.record.stdin_once and not self.record.tty
                await self._audience.write(sock, self._streams["stdin"], client, once=once)
            else:
                sock.close()

    async def resize(self, width: int, height: int) -> None:
        """Set the size of the container's terminal, in characters."""
        await self._vm.agent.request(
            "process.resize", {"container": self.id, "width": width, "height": height}
        )

    def on_guest_exit(self, event: dict[str, Any]) -> None:
        """The agent's event `container.exit`; the guest's word is checked."""
        code = event.get("exit_code")
        code = code if isinstance(code, int) and 0 <= code <= 255 else EXIT_UNKNOWN
        oom = event.get("oom_killed") is True
        reason = "OOMKilled" if oom else "Completed" if code == 0 else "Error"
        self._tasks.start(self.ended(code, reason, ""), f"exit of {self.id[:12]}")

    async def ended(self, code: int, reason: str, message: str) -> None:
        """The container's process is gone: drain its output, then record it. Once."""
        # The host's clock, as all times of the record; before what may take its time.
        now = time.time_ns()
        async with self._lock:
            await self._end(code, reason, message, now)

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _end(self, code: int, reason: str, message: str, at: int, *, begun: int = 0) -> None:
        if self.record.state == "exited":
            return
        await drain(self._pumps)
        self._close_writer()
        await self._audience.hush()
        self._reset_streams()
        changes = {
            "state": "exited",
            "exit_code": code,
            "reason": reason,
            "message": message[:4096],
            "started_at": begun or self.record.started_at,
            # Its end may be told before the answer to its start.
            "finished_at": max(at, self.record.started_at),
        }
        try:
            self._save(**changes)
        except OSError as error:
            # What the kubelet asks is answered from memory; only a dead shim would be misread.
            log.error("record of container %s: %s", self.id[:12], error)
            self.record = dataclasses.replace(self.record, **changes)  # type: ignore[arg-type]
        self.exited.set()
        self._on_exit(self.record)

    def _reset_streams(self) -> None:
        for stream in self._streams.values():
            with contextlib.suppress(ThawError):
                stream.reset()
        self._streams.clear()

    async def stop(self, number: int, timeout: float) -> None:
        """Send signal `number`, wait `timeout` seconds, then SIGKILL all. Idempotent.

        Raises `DeadlineExceeded` when the guest does not report the end of a killed container.
        """
        if self.record.state == "created":
            await self.ended(EXIT_KILLED, "Error", "stopped before it was started")
            return
        if self.record.state == "exited":
            return
        await failpoint.hit("container.stop")
        if timeout > 0 and await self._told_to_stop(number, timeout):
            return
        await self._signal(int(signal.SIGKILL), everyone=True)
        if not await self._ends_within(KILL_TIMEOUT):
            raise DeadlineExceeded(
                f"container {self.id[:12]} was killed, but its guest does not report its end",
                hint="stop the pod: that ends the VM",
            )

    async def _told_to_stop(self, number: int, timeout: float) -> bool:
        """Send the signal once its first process hears it: a program that has only just begun has
        set no handler yet. Whether it ended in time."""
        deadline = time.monotonic() + timeout
        pause = DEAF_SECONDS
        while not await self._signal(number, everyone=False):
            left = deadline - time.monotonic()
            if left <= 0 or await self._ends_within(min(pause, left)):
                break
            pause = min(2 * pause, MAX_DEAF_SECONDS)
        return await self._ends_within(deadline - time.monotonic())

    async def _ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self.exited.wait()
        return self.exited.is_set()

    async def _signal(self, number: int, *, everyone: bool) -> bool:
        """Send a signal; false when the container's first process does not hear it yet."""
        answer: dict[str, Any] = {}
        with contextlib.suppress(NotFound, FailedPrecondition):
            answer = await self._vm.agent.request(
                "container.kill", {"id": self.id, "signal": number, "all": everyone}
            )
        return answer.get("heard") is not False

    async def update(
        self,
        resources: Mapping[str, Any],
        oom_score_adj: int | None,
        config: dict[str, Any],
        guest_cpus: str,
    ) -> None:
        """Change the limits, in the guest and then in the record, whose `config` names them.

        Raises `FailedPrecondition` when it has ended, and what the guest refuses; nothing is
        changed then.
        """
        async with self._lock:
            if self.record.state == "exited":
                raise FailedPrecondition(f"container {self.id[:12]} has ended")
            wanted: dict[str, Any] = {"id": self.id, "resources": dict(resources)}
            if oom_score_adj is not None:
                wanted["oom_score_adj"] = oom_score_adj
            await self._vm.agent.request("container.update", wanted)
            self._save(config=config, guest_cpus=guest_cpus)

    def reopen_log(self) -> None:
        """Go on in a new log file. Raises `FailedPrecondition` unless it runs, or cannot."""
        if self.record.state != "running":
            raise FailedPrecondition(f"container {self.id[:12]} is not running")
        if self._writer is not None:
            self._writer.reopen()

    async def remove(self, *, alive: bool) -> None:
        """End the container and give back all it holds; `alive` says whether the VM is."""
        if self.record.state == "running" and alive:
            # What does not die of this is deleted by force below.
            await self._attempt(self.stop(int(signal.SIGKILL), 0))
        async with self._lock:
            await failpoint.hit("container.remove")
            await self._discard(alive=alive)
            records.container_path(self._folder, self.id).unlink(missing_ok=True)
        await self.close()

    async def _discard(self, *, alive: bool) -> None:
        """Give back what the container holds, as far as it got; the first error is logged."""
        self._reset_streams()
        self._close_writer()
        if alive and self._in_guest:
            await self._attempt(
                self._vm.agent.request("container.delete", {"id": self.id, "force": True})
            )
        self._in_guest = False
        for name in self._shares:
            try:
                sandbox.detach_share(self._folder / "share", name)
            except ThawError as error:
                log.warning("%s", error)
        self._shares.clear()
        kept, self._kept = self._kept, []
        for name in kept:
            await self._attempt(self._volumes.release(self._vm, name, alive=alive))
        slots, self._slots = self._slots, []
        for slot, read_only in slots if alive else ():
            await self._attempt(self._disks.detach(self._vm, slot, read_only=read_only))
        names, self._layer_names = self._layer_names, []
        if alive and names:
            await self._attempt(self._layers.release(self._vm, names))

    async def _attempt(self, work: Any) -> None:
        try:
            await work
        except ThawError as error:
            log.warning("container %s: %s", self.id[:12], error)

    async def close(self) -> None:
        """End the container's background work."""
        await self._tasks.close()
        await self._audience.close()
