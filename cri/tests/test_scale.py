"""A full node: all shims are asked, a few at a time, and what there is no room for is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri import recover
from cri.api import v1_pb2 as v1
from cri.config import Config, Timeouts
from cri.index import POD_UID
from cri.service import container_list, sandbox_list, sandbox_run
from cri.tests.fakes import FakeShim, World, make_world
from cri.vms import Wire
from hostlib import ids
from hostlib.errors import ResourceExhausted
from shim import records
from shim.records import ContainerMetadata, ContainerRecord, PodMetadata, PodRecord, VMRecord


@pytest.fixture
def world(tmp_path: Path) -> World:
    timeouts = Timeouts(adopt_seconds=0.3)
    config = Config(root=tmp_path / "root", state=tmp_path / "state", timeouts=timeouts)
    return make_world(tmp_path, config=config)


class CountedShim(FakeShim):
    """Knows how many of its kind are asked at a time, and how often RAM was asked for."""

    asked = most = rams = 0

    async def describe(self) -> Wire:
        CountedShim.asked += 1
        CountedShim.most = max(CountedShim.most, CountedShim.asked)
        try:
            return await super().describe()
        finally:
            CountedShim.asked -= 1

    async def ram(self) -> tuple[str, int]:
        CountedShim.rams += 1
        return await super().ram()


def crowd(world: World, count: int, *, first_silent: int = 0) -> list[PodRecord]:
    """Pods of a former daemon, in the order in which they are found."""
    made = []
    for number, vm_id in enumerate(sorted(ids.new_vm_id() for _ in range(count))):
        folder = world.daemon.vms_folder / vm_id
        folder.mkdir()
        metadata = PodMetadata(f"web-{number}", f"uid-{number}", "default")
        pod = PodRecord(ids.new_object_id(), metadata, 1, {POD_UID: metadata.uid})
        container = ContainerRecord(
            ids.new_object_id(), pod.id, ContainerMetadata("c"), 1, labels={POD_UID: metadata.uid}
        )
        for record in (VMRecord(vm_id, 0, 0, "key"), pod, container):
            records.write(folder, record)
        shim = CountedShim(vm_id, world.daemon.handle_event)
        shim.pod, shim.silent = pod, number < first_silent
        shim.containers[container.id] = container
        world.zygote.shims[vm_id] = shim
        made.append(pod)
    return made


@pytest.fixture(autouse=True)
def _zero() -> None:
    CountedShim.asked = CountedShim.most = CountedShim.rams = 0


async def test_shims_are_asked_a_few_at_a_time(world: World) -> None:
    made = crowd(world, 300)
    found = await recover.recover(world.daemon)
    assert (found.pods, found.lost) == (300, 0)
    assert 1 <= CountedShim.most <= recover.AT_ONCE
    # /dev/null is no sealed RAM: as long as there is none, each is asked.
    assert CountedShim.rams == 300
    assert {pod.id for pod in world.daemon.index.pods} == {pod.id for pod in made}
    await world.daemon.close()


async def test_ram_is_asked_for_until_there_is_some(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.daemon.snapshots, "wants", lambda _: CountedShim.rams < 1)
    crowd(world, 100)
    await recover.recover(world.daemon)
    assert CountedShim.rams <= recover.AT_ONCE
    await world.daemon.close()


async def test_none_waits_for_the_silence_of_others(world: World) -> None:
    silent = 2 * recover.AT_ONCE
    crowd(world, silent + 40, first_silent=silent)
    found = await recover.recover(world.daemon)
    # Silent shims whose process is dead: their pods are lost, the others are adopted.
    assert (found.pods, found.lost) == (silent + 40, silent)
    await world.daemon.close()


async def test_a_full_network_fails_the_pod_before_a_vm_is_made(world: World) -> None:
    world.network.full = ResourceExhausted("no port is left", hint="remove pods")
    config = v1.PodSandboxConfig(metadata=v1.PodSandboxMetadata(name="one", uid="u"))
    request = v1.RunPodSandboxRequest(config=config)
    with pytest.raises(ResourceExhausted, match="no port is left"):
        await sandbox_run.run(world.daemon, request)
    assert world.zygote.shims == {}
    assert list(world.daemon.vms_folder.iterdir()) == []
    world.network.full = None
    assert (await sandbox_run.run(world.daemon, request)).pod_sandbox_id
    await world.daemon.close()


async def test_filters_find_what_a_scan_would(world: World) -> None:
    made = crowd(world, 50)
    await recover.recover(world.daemon)
    daemon, pod = world.daemon, made[7]
    by_uid = {POD_UID: pod.metadata.uid}
    for wanted in (
        v1.PodSandboxFilter(id=pod.id),
        v1.PodSandboxFilter(label_selector=by_uid),
        v1.PodSandboxFilter(id=pod.id, label_selector=by_uid),
    ):
        answer = await sandbox_list.run(daemon, v1.ListPodSandboxRequest(filter=wanted))
        assert [each.id for each in answer.items] == [pod.id]
    for other in (
        v1.ContainerFilter(pod_sandbox_id=pod.id),
        v1.ContainerFilter(label_selector=by_uid),
        v1.ContainerFilter(pod_sandbox_id=pod.id[:20]),
    ):
        listed = await container_list.run(daemon, v1.ListContainersRequest(filter=other))
        assert [each.pod_sandbox_id for each in listed.containers] == [pod.id]
    nobodys = v1.ContainerFilter(pod_sandbox_id=made[8].id, label_selector=by_uid)
    listed = await container_list.run(daemon, v1.ListContainersRequest(filter=nobodys))
    assert not listed.containers
    await daemon.close()


async def test_a_list_shows_what_changed(world: World) -> None:
    (pod,) = crowd(world, 1)
    await recover.recover(world.daemon)
    daemon = world.daemon
    shown = (await sandbox_list.run(daemon, v1.ListPodSandboxRequest())).items
    assert [each.state for each in shown] == [v1.SANDBOX_READY]
    daemon.index.pod_stopped(daemon.index.pods.find(pod.id), "stopped", 1)
    shown = (await sandbox_list.run(daemon, v1.ListPodSandboxRequest())).items
    assert [each.state for each in shown] == [v1.SANDBOX_NOTREADY]
    listed = (await container_list.run(daemon, v1.ListContainersRequest())).containers
    assert [each.state for each in listed] == [v1.CONTAINER_EXITED]
    await daemon.close()
