from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path

import pytest

from cri import recover
from cri.config import Config, Timeouts
from cri.tests.fakes import FakeShim, World, make_world
from hostlib import ids
from shim import records
from shim.records import (
    ContainerMetadata,
    ContainerRecord,
    PodMetadata,
    PodNetworkRecord,
    PodRecord,
    VMRecord,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    timeouts = Timeouts(adopt_seconds=0.2)
    config = Config(root=tmp_path / "root", state=tmp_path / "state", timeouts=timeouts)
    return make_world(tmp_path, config=config)


def a_pod() -> PodRecord:
    return PodRecord(
        id=ids.new_object_id(),
        metadata=PodMetadata("web", "u", "default"),
        created_at=1,
        network=PodNetworkRecord(ips=("10.88.0.2",), cni={"kind": "fake"}),
    )


def a_vm(world: World, pod: PodRecord | None, *, alive: bool) -> tuple[str, Path]:
    """A VM as a former daemon left it."""
    vm_id = ids.new_vm_id()
    folder = world.daemon.vms_folder / vm_id
    folder.mkdir()
    (world.daemon.netns_folder / vm_id).touch()
    (world.daemon.scratch_folder / f"{vm_id}.ext4").touch()
    shape = {"vcpus": 1, "memory_mib": 2048}
    records.write(folder, VMRecord(vm_id, 0, 0, "key", shape, state="pooled"))
    if pod is not None:
        records.write(folder, pod)
        container = ContainerRecord(
            id=ids.new_object_id(),
            pod_id=pod.id,
            metadata=ContainerMetadata("c"),
            created_at=1,
            state="running",
            started_at=2,
        )
        records.write(folder, container)
    if alive:
        shim = FakeShim(vm_id, world.daemon.handle_event)
        shim.pod = pod
        world.zygote.shims[vm_id] = shim
    return vm_id, folder


async def test_a_bound_vm_is_adopted(world: World) -> None:
    pod = a_pod()
    vm_id, _ = a_vm(world, pod, alive=True)
    found = await recover.recover(world.daemon)
    assert (found.pods, found.lost) == (1, 0)
    adopted = world.daemon.index.pods.find(pod.id)
    assert adopted.ready
    assert adopted.vm.shim is world.zygote.shims[vm_id]
    assert world.network.live == {vm_id: {"kind": "fake"}}
    await world.daemon.close()


async def test_a_dead_shims_pod_has_ended(world: World) -> None:
    pod = a_pod()
    _, folder = a_vm(world, pod, alive=False)
    found = await recover.recover(world.daemon)
    assert (found.pods, found.lost) == (1, 1)
    lost = world.daemon.index.pods.find(pod.id)
    assert lost.record.state == "notready"
    (container,) = world.daemon.index.containers_of(pod.id)
    assert (container.record.state, container.record.exit_code) == ("exited", 255)
    assert container.record.reason == "Error"
    # On disk as well, so that the next start says the same.
    assert records.read_vm_folder(folder).containers[0].finished_at > 0
    assert world.network.live == {}
    await world.daemon.close()


async def test_unbound_vms_go_back_to_the_pool_or_end(world: World) -> None:
    kept, _ = a_vm(world, None, alive=True)
    old, old_folder = a_vm(world, None, alive=True)
    world.zygote.shims[old].key = "older"
    _, dead_folder = a_vm(world, None, alive=False)
    found = await recover.recover(world.daemon)
    assert not dead_folder.exists()
    await world.daemon.snapshots.ensure(world.daemon.config.guest.default_shape)
    await recover.return_to_pool(world.daemon, found.spare)
    assert [vm.id for vm in world.daemon.pool._ready] == [kept]
    assert not old_folder.exists()
    assert world.zygote.shims[old].closed.is_set()
    await world.daemon.close()


async def test_one_bad_pod_never_stops_the_start(world: World) -> None:
    good, broken = a_pod(), a_pod()
    a_vm(world, good, alive=True)
    _, folder = a_vm(world, broken, alive=False)
    (folder / "vm.json").write_text("{")
    (folder / "pod.json").write_text("nonsense")
    (world.daemon.vms_folder / "not-a-vm").mkdir()
    await recover.recover(world.daemon)
    assert [pod.id for pod in world.daemon.index.pods] == [good.id]
    assert (world.daemon.vms_folder / "not-a-vm").is_dir()
    await world.daemon.close()


async def test_a_silent_shim_costs_its_budget_alone(world: World) -> None:
    pods = [a_pod() for _ in range(5)]
    for pod in pods:
        vm_id, _ = a_vm(world, pod, alive=True)
        world.zygote.shims[vm_id].silent = True
    async with asyncio.timeout(2):
        await recover.recover(world.daemon)
    assert len(world.daemon.index.pods) == 5
    await world.daemon.close()


async def test_leftovers_are_swept(world: World) -> None:
    (world.daemon.netns_folder / "aaaaaaaa").touch()
    (world.daemon.scratch_folder / "bbbbbbbb.ext4").touch()
    (world.daemon.scratch_folder / "notes.txt").touch()
    found = await recover.recover(world.daemon)
    assert found.cleared == 2
    assert [each.name for each in world.daemon.scratch_folder.iterdir()] == ["notes.txt"]
    await world.daemon.close()


async def test_a_stopped_pod_keeps_no_address(world: World) -> None:
    pod = dataclasses.replace(a_pod(), state="notready", stopped_at=time.time_ns())
    a_vm(world, pod, alive=True)
    await recover.recover(world.daemon)
    assert world.network.live == {}
    await world.daemon.close()
