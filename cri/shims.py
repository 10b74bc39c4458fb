"""Shims and the zygote as the daemon calls them: docs/shim-protocol.md over `shim.client`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from cri.config import Config, shape_size
from cri.shapes import Size
from cri.sources import Sources
from cri.vms import ExecResult, Wire
from hostlib.errors import Internal
from shim.client import Reply, ShimClient, ZygoteClient
from shim.protocol import close_all
from shim.records import ContainerRecord, PodRecord, ShimConfig, to_dict

Event = Callable[[str, Wire], None]

# Beyond a call's own time-out: what the shim needs to answer.
SLACK: Final = 15.0

RESIZE_TIMEOUT: Final = 600.0
"""Seconds; the shim gives its guest two minutes for each of a few steps."""

STATS_TIMEOUT: Final = 3.0
"""Seconds; the shim gives its guest two."""


class RemoteShim:
    """A connected shim; `cri.vms.Shim` says what its methods do."""

    def __init__(self, client: ShimClient, config: Config) -> None:
        self._client = client
        self._timeouts = config.timeouts
        self.closed = asyncio.Event()
        client.closed.add_done_callback(lambda _: self.closed.set())

    async def _call(
        self,
        method: str,
        params: Wire | None = None,
        *,
        fds: Sequence[int] = (),
        timeout: float | None = None,
    ) -> Reply:
        limit = self._timeouts.call_seconds if timeout is None else timeout
        return await self._client.call(method, params, fds, timeout=limit)

    async def describe(self) -> Wire:
        return (await self._call("describe")).result

    async def ram(self) -> tuple[str, int]:
        reply = await self._call("ram")
        if len(reply.fds) != 1:
            close_all(reply.fds)
            raise Internal("the shim sent no RAM")
        return str(reply.result.get("key")), reply.fds[0]

    async def bind(
        self, pod: PodRecord, network: Wire, identity: Wire, users: Wire | None = None
    ) -> Wire:
        params: Wire = {"pod": to_dict(pod), "network": network, "identity": identity}
        if users is not None:
            params["user_namespace"] = users
        return (await self._call("bind", params, timeout=self._timeouts.bind_seconds)).result

    async def pod_update(self, config: Wire) -> None:
        await self._call("pod.update", {"config": config})

    async def pod_limit(self, memory: int) -> None:
        await self._call("pod.limit", {"memory": memory})

    async def pod_resize(self, wanted: Size, region_mib: int) -> Size:
        """Make the VM larger, or smaller again; what it is then. Raises `ResourceExhausted` when
        its guest does not take it."""
        params = {**asdict(wanted), "region_mib": region_mib}
        answer = await self._call("pod.resize", params, timeout=RESIZE_TIMEOUT)
        return Size.from_wire(answer.result, wanted)

    async def pod_stop(self) -> None:
        await self._call("pod.stop")

    async def container_create(
        self,
        container: ContainerRecord,
        spec: Wire,
        layers: Sequence[Mapping[str, str]],
        volumes: Sequence[Mapping[str, str]],
        sources: Sources,
    ) -> Wire:
        params = {
            "container": to_dict(container),
            "spec": spec,
            "layers": list(layers),
            "volumes": list(volumes),
            "mounts": sources.shares,
            "disks": sources.disks,
        }
        answer = await self._call("container.create", params, fds=sources.descriptors)
        return answer.result

    async def container_start(self, container_id: str) -> int:
        return int((await self._call("container.start", {"id": container_id})).result["started_at"])

    async def container_stop(self, container_id: str, number: int, timeout: float) -> None:
        params = {"id": container_id, "signal": number, "timeout": timeout}
        await self._call("container.stop", params, timeout=timeout + self._timeouts.call_seconds)

    async def container_remove(self, container_id: str) -> None:
        await self._call("container.remove", {"id": container_id})

    async def container_update(
        self,
        container_id: str,
        resources: Wire,
        oom_score_adj: int | None,
        config: Wire,
        guest_cpus: str,
    ) -> None:
        params = {
            "id": container_id,
            "resources": resources,
            "oom_score_adj": oom_score_adj,
            "config": config,
            "guest_cpus": guest_cpus,
        }
        await self._call("container.update", params)

    async def container_reopen_log(self, container_id: str) -> None:
        await self._call("container.reopen_log", {"id": container_id})

    async def pod_stats(self) -> Wire:
        """What pod and containers use (docs/shim-protocol.md). Raises `DeadlineExceeded` where the
        guest does not say."""
        return (await self._call("pod.stats", timeout=STATS_TIMEOUT)).result

    async def exec_sync(self, container_id: str, process: Wire, timeout: float) -> ExecResult:
        params = {"container": container_id, "process": process, "timeout": timeout}
        # No time-out means that the command may run as long as its container.
        limit = timeout + SLACK if timeout else float("inf")
        reply = await self._client.call(
            "exec_sync", params, timeout=None if limit == float("inf") else limit
        )
        split = int(reply.result["stdout_bytes"])
        if not 0 <= split <= len(reply.body):
            raise Internal("the shim's answer is torn")
        return ExecResult(int(reply.result["exit_code"]), reply.body[:split], reply.body[split:])

    async def exec_open(
        self,
        container_id: str,
        process: Wire,
        *,
        terminal: bool = False,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> str:
        """Start a process with ends of unix socket pairs as its streams; its name.

        The shim has duplicates of the descriptors afterwards, the caller closes its own. Raises
        what ExecSync does.
        """
        streams, fds = _streams(stdin, stdout, stderr)
        params = {
            "container": container_id,
            "process": process,
            "terminal": terminal,
            "streams": streams,
        }
        return str((await self._call("exec.open", params, fds=fds)).result["exec"])

    async def exec_wait(self, name: str) -> int:
        """The exit code, when the process and its output have ended.

        Raises `FailedPrecondition` when the VM ends first, `Unavailable` when the shim does.
        """
        reply = await self._client.call("exec.wait", {"exec": name})
        return int(reply.result["exit_code"])

    async def exec_resize(self, name: str, width: int, height: int) -> None:
        await self._call("exec.resize", {"exec": name, "width": width, "height": height})

    async def attach_open(
        self,
        container_id: str,
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        """Follow a running container's output, and write to its input; descriptors as in
        `exec_open`. Raises `FailedPrecondition` unless it runs, `ResourceExhausted`."""
        streams, fds = _streams(stdin, stdout, stderr)
        await self._call("attach.open", {"container": container_id, "streams": streams}, fds=fds)

    async def container_resize(self, container_id: str, width: int, height: int) -> None:
        params = {"container": container_id, "width": width, "height": height}
        await self._call("container.resize", params)

    async def forward_open(self, port: int, sock: int) -> None:
        """Connect `sock` to a port of the pod's own localhost, by IPv4, else IPv6.

        Raises `Unavailable` when nothing listens there, `ResourceExhausted`.
        """
        await self._call("forward.open", {"port": port}, fds=(sock,))

    async def shutdown(self) -> None:
        await self._call("shutdown")

    async def close(self) -> None:
        await self._client.close()


def _streams(
    stdin: int | None, stdout: int | None, stderr: int | None
) -> tuple[list[str], list[int]]:
    given = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    found = {name: descriptor for name, descriptor in given.items() if descriptor is not None}
    return list(found), list(found.values())


class Shims:
    """Makes shims and connects to those that live; what they tell goes to `on_event`."""

    def __init__(self, config: Config, zygote: ZygoteClient) -> None:
        self._config = config
        self._zygote = zygote
        self.on_event: Event = lambda _vm_id, _event: None

    async def connect(self, vm_id: str, socket: Path, *, timeout: float) -> RemoteShim:
        """A shim of a former daemon. Raises `Unavailable`, `DeadlineExceeded`."""
        client = await ShimClient.connect(socket, on_event=self._handler(vm_id), timeout=timeout)
        return RemoteShim(client, self._config)

    async def spawn(self, vm_id: str, folder: Path, config: ShimConfig, ram: int) -> RemoteShim:
        """A shim whose VM waits, paused. Raises what the shim reports when it fails."""
        spawned = await self._zygote.spawn(
            vm_id, folder, config, ram, on_event=self._handler(vm_id)
        )
        try:
            await spawned.client.wait_ready(self._config.timeouts.spawn_seconds)
        except BaseException:
            await spawned.client.close()
            raise
        return RemoteShim(spawned.client, self._config)

    def _handler(self, vm_id: str) -> Callable[[Wire], None]:
        return lambda event: self.on_event(vm_id, event)

    async def bake(self, shape: str, progress: Callable[[str, float], None]) -> Wire:
        """Bake the shape, unless it is there; the event ``baked``."""
        return await self._zygote.bake(
            guest_dir=self._config.guest.dir,
            snapshots_dir=self._config.root / "snapshots",
            shape=shape_wire(shape),
            accel=self._config.vm.accel,
            qemu=self._config.vm.qemu,
            uid_base=self._config.vm.uid_base,
            on_progress=progress,
        )

    async def load(self, path: Path) -> tuple[str, int]:
        return await self._zygote.load(path)

    async def verify(self, snapshot: Path, key: str, ram: int) -> bool:
        return await self._zygote.verify(snapshot, key, ram)


def shape_wire(shape: str) -> Wire:
    """A shape as the shim protocol has it."""
    vcpus, memory_mib = shape_size(shape)
    return {"vcpus": vcpus, "memory_mib": memory_mib}


def shape_text(wire: Wire) -> str:
    """The opposite of `shape_wire`."""
    return f"{wire.get('vcpus')}x{wire.get('memory_mib')}"
