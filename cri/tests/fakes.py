"""A daemon whose shims, images and network are plain objects in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cri.config import Config
from cri.daemon import Daemon
from cri.network.api import Attachment, Dns, HostPort, PodIdentity
from cri.shapes import Size
from cri.snapshots import Snapshots
from cri.sources import Sources
from cri.streaming.tests.guests import End, take
from cri.vms import ExecResult, Shim, Wire
from hostlib.errors import DeadlineExceeded, NotFound, ThawError, Unavailable
from images.model import Image, ImageConfig, Layer, Usage
from shim.records import ContainerRecord, PodRecord, ShimConfig, to_dict

IMAGE = Image(
    id="sha256:" + "1" * 64,
    repo_tags=("docker.io/library/shell:1",),
    repo_digests=(),
    size=4096,
    config=ImageConfig(entrypoint=("/bin/sh",), env=("PATH=/bin",), stop_signal="SIGQUIT"),
    layers=(Layer("sha256:" + "2" * 64, Path("/layers/2"), 4096),),
)


async def _cat(source: End, sink: End) -> None:
    try:
        while data := await source.read():
            await sink.write(data)
    finally:
        source.close()
        sink.close()


class FakeShim:
    """A shim that remembers what it was told."""

    def __init__(self, vm_id: str, event: Callable[[str, Wire], None]) -> None:
        self.vm_id = vm_id
        self.closed = asyncio.Event()
        self.calls: list[tuple[Any, ...]] = []
        self.pod: PodRecord | None = None
        self.containers: dict[str, ContainerRecord] = {}
        self.fail: dict[str, ThawError] = {}
        self.silent = False
        self.execs: dict[str, asyncio.Task[None]] = {}
        self.key = "key"
        self.has = Size(1, 2048)
        self.can_have = Size(8, 264192)
        self.keeps = 0
        """MiB that its guest never gives back."""
        self.stats: Wire = {"pod": {}, "containers": {}, "interfaces": [], "scratch": None}
        self._event = event

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.closed.is_set():
            raise Unavailable("the shim is gone")
        if (error := self.fail.get(call[0])) is not None:
            raise error

    async def describe(self) -> Wire:
        if self.silent:
            await asyncio.sleep(3600)
        return {
            "vm_id": self.vm_id,
            "pid": 0,
            "start_time": 0,
            "snapshot_key": self.key,
            "size": dataclasses.asdict(self.has),
            "most": dataclasses.asdict(self.can_have),
            "state": "running" if self.pod else "pooled",
            "pod": to_dict(self.pod) if self.pod else None,
            "containers": [to_dict(each) for each in self.containers.values()],
        }

    async def ram(self) -> tuple[str, int]:
        return self.key, os.open("/dev/null", os.O_RDONLY)

    async def bind(
        self, pod: PodRecord, network: Wire, identity: Wire, users: Wire | None = None
    ) -> Wire:
        self._note("bind", pod, network, identity)
        self.pod = pod
        return {"steps": ["reseed"], "timings": {"reseed": 5}}

    async def pod_update(self, config: Wire) -> None:
        self._note("pod_update", config)
        assert self.pod is not None
        self.pod = dataclasses.replace(self.pod, config=config, linux=config.get("linux", {}))

    async def pod_limit(self, memory: int) -> None:
        self._note("pod_limit", memory)

    async def pod_resize(self, wanted: Size, region_mib: int) -> Size:
        self._note("pod_resize", wanted, region_mib)
        self.has = Size(wanted.vcpus, max(wanted.memory_mib, self.keeps))
        return self.has

    async def pod_stop(self) -> None:
        self._note("pod_stop")

    async def container_create(
        self,
        container: ContainerRecord,
        spec: Wire,
        layers: Sequence[Mapping[str, str]],
        volumes: Sequence[Mapping[str, str]],
        sources: Sources,
    ) -> Wire:
        self._note("container_create", spec, layers, volumes, sources)
        self.containers[container.id] = container
        return {"timings": {"layers": 3, "guest": 4}}

    async def container_start(self, container_id: str) -> int:
        self._note("container_start", container_id)
        now = time.time_ns()
        self._set(container_id, state="running", started_at=now)
        return now

    def _set(self, container_id: str, **changes: Any) -> None:
        found = self.containers[container_id]
        self.containers[container_id] = dataclasses.replace(found, **changes)

    def exits(self, container_id: str, code: int, reason: str = "") -> None:
        """The container's process ends by itself."""
        now = time.time_ns()
        self._set(container_id, state="exited", exit_code=code, reason=reason, finished_at=now)
        record = to_dict(self.containers[container_id])
        self._event(self.vm_id, {"event": "container.exited", "container": record})

    async def container_stop(self, container_id: str, number: int, timeout: float) -> None:
        self._note("container_stop", container_id, number, timeout)
        self.exits(container_id, 128 + number)

    async def container_remove(self, container_id: str) -> None:
        self._note("container_remove", container_id)
        self.containers.pop(container_id, None)

    async def container_update(
        self,
        container_id: str,
        resources: Wire,
        oom_score_adj: int | None,
        config: Wire,
        guest_cpus: str,
    ) -> None:
        self._note("container_update", container_id, resources, oom_score_adj, guest_cpus)
        self._set(container_id, config=config, guest_cpus=guest_cpus)

    async def container_reopen_log(self, container_id: str) -> None:
        self._note("container_reopen_log", container_id)

    async def pod_stats(self) -> Wire:
        self._note("pod_stats")
        if self.silent:
            raise DeadlineExceeded("the guest did not say what it uses")
        return self.stats

    async def exec_sync(self, container_id: str, process: Wire, timeout: float) -> ExecResult:
        self._note("exec_sync", container_id, process, timeout)
        return ExecResult(3, b"out", b"err")

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
        self._note("exec_open", container_id, process, terminal)
        name = f"exec-{len(self.execs)}"
        self.execs[name] = asyncio.create_task(_cat(take(stdin), take(stdout)))
        return name

    async def exec_wait(self, name: str) -> int:
        await self.execs[name]
        return 3

    async def exec_resize(self, name: str, width: int, height: int) -> None:
        self._note("exec_resize", name, width, height)

    async def attach_open(
        self,
        container_id: str,
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        self._note("attach_open", container_id)
        self.execs["attach"] = asyncio.create_task(_cat(take(stdin), take(stdout)))

    async def container_resize(self, container_id: str, width: int, height: int) -> None:
        self._note("container_resize", container_id, width, height)

    async def forward_open(self, port: int, sock: int) -> None:
        self._note("forward_open", port)
        end = take(sock)
        self.execs[f"port-{port}"] = asyncio.create_task(_cat(end, end))

    async def shutdown(self) -> None:
        self._note("shutdown")
        self.closed.set()

    async def close(self) -> None:
        self.closed.set()


class FakeZygote:
    def __init__(self) -> None:
        self.shims: dict[str, FakeShim] = {}
        self.on_event: Callable[[str, Wire], None] = lambda _vm, _event: None
        self.bakes = 0
        self.fail_bake: ThawError | None = None
        self.fail_spawn: ThawError | None = None
        self.hold = asyncio.Event()
        self.hold.set()

    async def spawn(self, vm_id: str, folder: Path, config: ShimConfig, ram: int) -> Shim:
        await self.hold.wait()
        if self.fail_spawn is not None:
            raise self.fail_spawn
        Path(config.netns).touch()
        (Path(config.scratch_dir) / f"{vm_id}.ext4").touch()
        self.shims[vm_id] = FakeShim(vm_id, lambda vm, event: self.on_event(vm, event))
        return self.shims[vm_id]

    async def connect(self, vm_id: str, socket: Path, *, timeout: float) -> Shim:
        if vm_id not in self.shims:
            raise Unavailable("nothing listens there")
        return self.shims[vm_id]

    async def bake(self, shape: str, progress: Callable[[str, float], None]) -> Wire:
        self.bakes += 1
        progress("boot", 0.5)
        if self.fail_bake is not None:
            raise self.fail_bake
        accelerator = {"name": "tcg", "reason": "no /dev/kvm", "warnings": []}
        return {"key": "key", "path": "/snapshots/key", "accelerator": accelerator}

    async def load(self, path: Path) -> tuple[str, int]:
        return "key", os.open("/dev/null", os.O_RDONLY)

    async def verify(self, snapshot: Path, key: str, ram: int) -> bool:
        return True


class FakeNetwork:
    def __init__(self) -> None:
        self.attached: dict[str, PodIdentity] = {}
        self.live: dict[str, Wire] = {}
        self.fail: ThawError | None = None
        self.full: ThawError | None = None

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    def ready(self) -> tuple[bool, str, str]:
        return True, "", ""

    def check_room(self) -> None:
        if self.full is not None:
            raise self.full

    async def prepare(self, vm_id: str, netns: Path) -> None: ...

    async def attach(
        self,
        vm_id: str,
        netns: Path,
        pod: PodIdentity,
        *,
        port_mappings: Sequence[HostPort] = (),
        dns: Dns | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Attachment:
        if self.fail is not None:
            raise self.fail
        self.attached[vm_id] = pod
        return Attachment(("10.88.0.2",), "eth0", {"mac": "02:00:00:00:00:01"}, {"kind": "fake"})

    async def detach(self, vm_id: str, netns: Path, pod: PodIdentity, opaque: Wire) -> None:
        self.attached.pop(vm_id, None)

    async def discard(self, vm_id: str, netns: Path) -> None: ...

    async def reconcile(self, live: Mapping[str, Wire]) -> None:
        self.live = dict(live)


class FakeImages:
    """One image, and who holds it."""

    def __init__(self) -> None:
        self.images = [IMAGE]
        self.held: dict[str, str] = {}
        self.received_bytes = 0

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    async def collect(self) -> int:
        return 0

    def _find(self, ref: str) -> Image | None:
        for image in self.images:
            if ref in (image.id, *image.repo_tags):
                return image
        return None

    def get(self, ref: str) -> Image | None:
        return self._find(ref)

    def list(self) -> list[Image]:
        return self.images

    async def pull(self, ref: str, **_: Any) -> Image:
        if (found := self._find(ref)) is None:
            raise NotFound(f"{ref} is not in the registry")
        return found

    async def runnable(self, image: Image) -> Image:
        return await self.merge(image.id) if len(image.mounts) > 12 else image

    async def merge(self, image_id: str) -> Image:
        found = self._find(image_id)
        assert found is not None
        layer = Layer("sha256:" + "9" * 64, Path("/merged/9"), 4096)
        merged = dataclasses.replace(found, merged=layer)
        self.images = [merged if one is found else one for one in self.images]
        return merged

    def merge_rest(self) -> None: ...

    async def remove(self, ref: str) -> None:
        self.images = [image for image in self.images if image is not self._find(ref)]

    def hold(self, image_id: str, holder: str) -> None:
        self.held[holder] = image_id

    def release(self, holder: str) -> None:
        self.held.pop(holder, None)

    async def usage(self) -> Usage:
        return Usage(4096, 1, "/root/images", time.time_ns())


@dataclasses.dataclass
class World:
    """A daemon and the fakes behind it."""

    daemon: Daemon
    zygote: FakeZygote
    network: FakeNetwork
    images: FakeImages


def make_world(tmp_path: Path, *, config: Config | None = None) -> World:
    config = config or Config(root=tmp_path / "root", state=tmp_path / "state")
    for folder in (config.root / "scratch", config.state / "vms", config.state / "netns"):
        folder.mkdir(parents=True, exist_ok=True)
    zygote, network, images = FakeZygote(), FakeNetwork(), FakeImages()
    daemon = Daemon(config, cast("Any", images), network, zygote, Snapshots(config.state, zygote))
    zygote.on_event = daemon.handle_event
    return World(daemon, zygote, network, images)
