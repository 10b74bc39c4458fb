"""Real microVMs: zygote, bake, shims and the guest's agent, with QEMU."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hostlib import failpoint, ids, linux
from hostlib.errors import DeadlineExceeded, Internal, NotFound, ThawError, Unavailable
from shim import records
from shim.client import ShimClient, SpawnedShim, ZygoteClient
from shim.records import (
    ContainerMetadata,
    ContainerRecord,
    PodMetadata,
    PodRecord,
    ShimConfig,
)
from vmm.rehearse import process, spec
from vmm.restore import STEPS

GUEST = Path(__file__).parents[2] / ".build" / "guest"
QEMU = "/usr/bin/qemu-system-x86_64"
SHAPE = {"vcpus": 1, "memory_mib": 256}

NETWORK = {
    "mac": "02:00:00:00:00:01",
    "addresses": ["10.88.0.2/16"],
    "routes": [{"dst": "0.0.0.0/0", "gateway": "10.88.0.1"}],
}
IDENTITY = {
    "hostname": "web",
    "hosts": "127.0.0.1 localhost\n",
    "resolv_conf": "",
    "machine_id": "0123456789abcdef" * 2,
    "boot_id": "11111111-2222-3333-4444-555555555555",
}


@pytest.fixture(scope="session")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (GUEST / "guest.json").exists():
        pytest.fail(f"there is no guest image in {GUEST}: make setup builds it")
    return tmp_path_factory.mktemp("snapshots")


async def gone(pid: int) -> None:
    """Until process `pid` has ended, zombies counted as ended."""
    async with asyncio.timeout(60):
        while linux.start_time(pid) is not None:  # noqa: ASYNC110 - another's process
            await asyncio.sleep(0.02)


@dataclass
class Host:
    root: Path
    snapshot: Path
    ram: int
    zygote: ZygoteClient
    points: Path
    pins: list[Path] = field(default_factory=list)

    def arm(self, text: str) -> None:
        fresh = self.points.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.points)

    async def spawn(self, *, rehearse: bool = False) -> VM:
        vm_id = ids.new_vm_id()
        folder = self.root / "vms" / vm_id
        folder.mkdir(parents=True)
        pin = self.root / "netns" / vm_id
        self.pins.append(pin)
        config = ShimConfig(
            instance="abc123",
            snapshot=str(self.snapshot),
            shape=SHAPE,
            accel="auto",
            qemu=QEMU,
            scratch_dir=str(self.root / "scratch"),
            rehearsal=str(GUEST / "rehearsal.squashfs"),
            tap_name="tap0",
            netns=str(pin),
            rehearse=rehearse,
        )
        events: list[dict[str, Any]] = []
        shim = await self.zygote.spawn(vm_id, folder, config, self.ram, on_event=events.append)
        return VM(shim, shim.client, folder, pin, events)


@dataclass
class VM:
    shim: SpawnedShim
    client: ShimClient
    folder: Path
    pin: Path
    events: list[dict[str, Any]]
    pod_id: str = field(default_factory=ids.new_object_id)

    async def ready(self) -> int:
        """QEMU's pid."""
        await self.client.wait_ready(60)
        return int((await self.client.call("describe")).result["qemu_pid"])

    async def bind(self) -> dict[str, Any]:
        pod = PodRecord(self.pod_id, PodMetadata("web", "u", "default"), time.time_ns())
        params = {"pod": records.to_dict(pod), "network": NETWORK, "identity": IDENTITY}
        return (await self.client.call("bind", params)).result

    async def create(self, *args: str, mounts: dict[str, int] | None = None) -> str:
        container = ids.new_object_id()
        record = ContainerRecord(
            container,
            self.pod_id,
            ContainerMetadata("c"),
            time.time_ns(),
            log_path=str(self.folder / f"{container[:8]}.log"),
        )
        mounts = mounts or {}
        plan = spec(*args)
        plan["mounts"] += [
            {
                "destination": f"/tmp/{name}",
                "type": "bind",
                "source": f"/run/thaw/share/{name}",
                "options": ["rbind"],
            }
            for name in mounts
        ]
        params = {
            "container": records.to_dict(record),
            "spec": plan,
            "layers": [{"name": "base", "path": str(GUEST / "rehearsal.squashfs")}],
            "mounts": [{"share": name, "readonly": False} for name in mounts],
        }
        await self.client.call("container.create", params, tuple(mounts.values()))
        return container

    async def run(self, *args: str) -> str:
        container = await self.create(*args)
        await self.client.call("container.start", {"id": container})
        return container

    async def exec(self, container: str, *args: str, timeout: float = 60) -> tuple[int, bytes]:
        params = {"container": container, "process": process(*args), "timeout": timeout}
        reply = await self.client.call("exec_sync", params)
        return int(reply.result["exit_code"]), reply.body

    async def exited(self, container: str) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while True:
                for event in self.events:
                    if event["event"] == "container.exited":
                        found: dict[str, Any] = event["container"]
                        if found["id"] == container:
                            return found
                await asyncio.sleep(0.02)

    def log(self, container: str) -> str:
        return (self.folder / f"{container[:8]}.log").read_text()


@asynccontextmanager
async def running_host(root: Path, snapshots: Path) -> AsyncIterator[Host]:
    zygote = ZygoteClient()
    await zygote.start()
    ram = -1
    host = None
    try:
        baked = await zygote.bake(
            guest_dir=GUEST, snapshots_dir=snapshots, shape=SHAPE, accel="auto", qemu=QEMU
        )
        key, ram = await zygote.load(Path(baked["path"]))
        assert key == baked["key"]
        host = Host(root, Path(baked["path"]), ram, zygote, Path(os.environ[failpoint.ENV_FILE]))
        yield host
    finally:
        for folder in (root / "vms").glob("*"):
            if (vm := records.read_vm_folder(folder).vm) is not None:
                with suppress(ProcessLookupError):
                    os.kill(vm.shim_pid, signal.SIGKILL)
                for pid in filter(None, (vm.shim_pid, vm.qemu_pid)):
                    await gone(pid)
        for pin in host.pins if host else []:
            with suppress(OSError):
                linux.umount(str(pin))
        if ram >= 0:
            os.close(ram)
        await zygote.stop()


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "failpoints"
    monkeypatch.setenv(failpoint.ENV_FILE, str(path))
    yield path


@pytest.fixture
async def host(points: Path, tmp_path: Path, snapshots: Path) -> AsyncIterator[Host]:
    async with running_host(tmp_path, snapshots) as found:
        yield found


async def test_the_life_of_a_pod(host: Host, tmp_path: Path) -> None:
    vm = await host.spawn(rehearse=True)
    qemu = await vm.ready()
    assert os.path.ismount(vm.pin)
    assert (await vm.bind())["steps"] == list(STEPS)

    sleeper = await vm.run("/bin/sleep", "600")
    echo = await vm.run("/bin/echo", "hello", "world")
    ended = await vm.exited(echo)
    assert (ended["exit_code"], ended["reason"]) == (0, "Completed")
    assert vm.log(echo).endswith(" stdout F hello world\n")

    assert await vm.exec(sleeper, "/bin/echo", "from exec") == (0, b"from exec\n")
    with pytest.raises(NotFound, match="/bin/nope"):
        await vm.exec(sleeper, "/bin/nope")
    with pytest.raises(DeadlineExceeded, match="timed out"):
        await vm.exec(sleeper, "/bin/sleep", "600", timeout=0.3)
    with pytest.raises(NotFound, match="/bin/nope"):
        await vm.run("/bin/nope")
    assert (await vm.client.call("container.stats", {"id": sleeper})).result["pids"] >= 1

    (tmp_path / "volume").mkdir()
    tree = linux.open_tree(str(tmp_path / "volume"))
    mounted = await vm.create("/bin/sleep", "600", mounts={"volume": tree})
    os.close(tree)
    await vm.client.call("container.start", {"id": mounted})
    await vm.client.call("container.remove", {"id": mounted})

    log = vm.folder / f"{sleeper[:8]}.log"
    log.rename(log.with_suffix(".1"))
    await vm.client.call("container.reopen_log", {"id": sleeper})
    assert log.exists()

    await vm.client.call("container.stop", {"id": sleeper, "signal": 15, "timeout": 0.2})
    assert (await vm.exited(sleeper))["exit_code"] == 137
    last = await vm.run("/bin/sleep", "600")
    await vm.client.call("pod.stop")
    await gone(qemu)
    assert (await vm.client.call("describe")).result["state"] == "stopped"
    await vm.client.call("shutdown")
    await gone(vm.shim.pid)
    found = records.read_vm_folder(vm.folder)
    assert found.pod is not None
    assert found.pod.state == "notready"
    assert {one.id: one.exit_code for one in found.containers}[last] == 137
    assert not list((tmp_path / "scratch").iterdir())


async def test_a_shim_killed_takes_its_vm_along_and_leaves_whole_records(host: Host) -> None:
    vm = await host.spawn()
    qemu = await vm.ready()
    await vm.bind()
    container = await vm.run("/bin/sleep", "600")
    os.kill(vm.shim.pid, signal.SIGKILL)
    await gone(vm.shim.pid)
    await gone(qemu)
    found = records.read_vm_folder(vm.folder)
    assert not found.broken
    assert [(one.id, one.state) for one in found.containers] == [(container, "running")]
    with pytest.raises(Unavailable):
        await ShimClient.connect(found.socket)


async def test_qemu_killed_is_reported_and_the_shim_serves_on(host: Host) -> None:
    vm = await host.spawn()
    qemu = await vm.ready()
    await vm.bind()
    container = await vm.run("/bin/sleep", "600")
    os.kill(qemu, signal.SIGKILL)
    ended = await vm.exited(container)
    assert (ended["exit_code"], ended["reason"]) == (255, "Error")
    assert "signal 9" in ended["message"].lower() or "sigkill" in ended["message"].lower()
    await vm.client.call("pod.stop")
    described = (await vm.client.call("describe")).result
    assert (described["state"], described["pod"]["state"]) == ("stopped", "notready")
    await vm.client.call("container.remove", {"id": container})
    await vm.client.call("shutdown")
    await gone(vm.shim.pid)


async def test_a_vm_that_dies_while_it_waits_takes_its_shim_along(host: Host) -> None:
    vm = await host.spawn()
    os.kill(await vm.ready(), signal.SIGKILL)
    async with asyncio.timeout(60):
        await vm.client.closed


async def test_another_daemon_adopts_the_shim_and_takes_the_ram(host: Host) -> None:
    vm = await host.spawn()
    await vm.ready()
    await vm.bind()
    await vm.client.close()
    await host.zygote.stop()
    await host.zygote.start()
    client = await ShimClient.connect(vm.folder / records.SOCKET)
    await client.wait_ready(5)
    assert (await client.call("describe")).result["pod"]["id"] == vm.pod_id
    reply = await client.call("ram")
    assert await host.zygote.verify(host.snapshot, reply.result["key"], reply.fds[0])
    open_ram = os.memfd_create("open")
    assert not await host.zygote.verify(host.snapshot, reply.result["key"], open_ram)
    os.close(open_ram)
    os.close(reply.fds[0])
    await client.call("shutdown")
    await gone(vm.shim.pid)
    await client.close()


@pytest.mark.parametrize("step", STEPS)
async def test_a_restore_step_that_fails_leaves_no_vm(host: Host, step: str) -> None:
    vm = await host.spawn()
    qemu = await vm.ready()
    host.arm(f"restore.{step}=error(injected)")
    with pytest.raises(Internal, match=f"restore step {step}: injected"):
        await vm.bind()
    await gone(qemu)
    found = records.read_vm_folder(vm.folder).pod
    assert found is not None
    assert found.state == "notready"
    assert step in found.reason
    await vm.client.call("shutdown")
    await gone(vm.shim.pid)


@pytest.mark.parametrize(
    "point",
    [
        "birth.namespaces",
        "birth.tap",
        "birth.restore",
        "vm.incoming",
        "vm.connect",
        "birth.scratch",
    ],
)
async def test_a_birth_that_fails_is_told_and_leaves_nothing(host: Host, point: str) -> None:
    host.arm(f"{point}=error(no {point})")
    vm = await host.spawn()
    with pytest.raises(ThawError, match=f"no {point}"):
        await vm.client.wait_ready(60)
    await gone(vm.shim.pid)
    record = records.read_vm_folder(vm.folder).vm
    assert record is not None
    if record.qemu_pid:
        await gone(record.qemu_pid)
    scratch = host.root / "scratch"
    assert not scratch.exists() or not list(scratch.iterdir())


async def test_sigterm_ends_the_vm_cleanly(host: Host) -> None:
    vm = await host.spawn()
    qemu = await vm.ready()
    await vm.bind()
    container = await vm.run("/bin/sleep", "600")
    os.kill(vm.shim.pid, signal.SIGTERM)
    await gone(vm.shim.pid)
    await gone(qemu)
    found = records.read_vm_folder(vm.folder)
    assert found.pod is not None
    assert found.pod.state == "notready"
    assert [(one.id, one.exit_code) for one in found.containers] == [(container, 137)]


async def test_a_zygote_that_dies_is_replaced(host: Host) -> None:
    first = host.zygote.pid
    os.kill(first, signal.SIGKILL)
    await gone(first)
    vm = await host.spawn()
    await vm.ready()
    assert host.zygote.pid != first
    await vm.client.call("shutdown")
    await gone(vm.shim.pid)
