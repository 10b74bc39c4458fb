"""A pod's VM grows before limits are raised, and becomes smaller after they were lowered; what
fails at any step leaves what was."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cri import growth, settle
from cri.api import v1_pb2 as v1
from cri.index import Container
from cri.recover import recover
from cri.service import container_create, container_update, sandbox_run, sandbox_update
from cri.shapes import Size
from cri.tests.fakes import FakeShim, World, make_world
from hostlib import failpoint
from hostlib.errors import FailedPrecondition, ResourceExhausted, ThawError

MIB = 2**20
BASE = Size(1, 2048)
Resources = v1.LinuxContainerResources


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoint.disarm()


class Bench:
    """A pod with one container, limited to a GiB and one CPU, on a node with 8 CPUs and 32 GiB."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.daemon = world.daemon
        self.daemon.node = Size(8, 32768)
        self.pod_id = ""
        self.container_id = ""

    async def start(self, *, limited: bool = True) -> None:
        linux = v1.LinuxPodSandboxConfig()
        if limited:
            linux.resources.memory_limit_in_bytes = 1024 * MIB
            linux.resources.cpu_quota = 100_000
        config = v1.PodSandboxConfig(metadata=v1.PodSandboxMetadata(name="p"), linux=linux)
        request = v1.RunPodSandboxRequest(config=config)
        self.pod_id = (await sandbox_run.run(self.daemon, request)).pod_sandbox_id
        self.container_id = await self.create("c", memory_limit_in_bytes=1024 * MIB)

    async def create(self, name: str, **fields: Any) -> str:
        config = v1.ContainerConfig(
            metadata=v1.ContainerMetadata(name=name),
            image=v1.ImageSpec(image="docker.io/library/shell:1"),
            linux=v1.LinuxContainerConfig(resources=Resources(cpu_quota=100_000, **fields)),
        )
        return await container_create.create(self.daemon, self.pod, config)

    @property
    def pod(self) -> Any:
        return self.daemon.index.pods.find(self.pod_id)

    @property
    def shim(self) -> FakeShim:
        return self.world.zygote.shims[self.pod.vm.id]

    @property
    def container(self) -> Container:
        return self.daemon.index.containers.find(self.container_id)

    @property
    def in_force(self) -> Resources:
        return settle.resources_of(self.container.record)

    async def update(self, **fields: Any) -> None:
        await container_update.update(self.daemon, self.container, Resources(**fields))

    async def update_pod(self, **fields: Any) -> None:
        request = v1.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id=self.pod_id, resources=Resources(**fields)
        )
        await sandbox_update.run(self.daemon, request)

    def resizes(self) -> list[Size]:
        return [call[1] for call in self.shim.calls if call[0] == "pod_resize"]


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    made = Bench(make_world(tmp_path))
    await made.start()
    return made


async def test_a_vm_grows_before_its_limits_and_shrinks_after(bench: Bench) -> None:
    assert bench.pod.vm.size == BASE
    before = bench.pod.vm.bounds
    await bench.update(memory_limit_in_bytes=4096 * MIB, cpu_quota=300_000)
    size = bench.pod.vm.size
    assert (size.vcpus, size.room >= 4096, size.room < 4096 + 128) == (3, True, True)
    assert size == bench.shim.has
    names = [call[0] for call in bench.shim.calls]
    assert names.index("pod_resize") < names.index("container_update")
    # The rest of what it may have, as long as this VM lives.
    region = next(call[2] for call in bench.shim.calls if call[0] == "pod_resize")
    assert region == 32768 - 2048
    group = bench.pod.vm.bounds.group.memory
    assert group - before.group.memory > 3072 * MIB
    assert bench.pod.vm.bounds.guest == 4096 * MIB
    await bench.update(memory_limit_in_bytes=512 * MIB, cpu_quota=50_000)
    names = [call[0] for call in bench.shim.calls]
    assert names[-1] == "pod_limit"
    assert bench.pod.vm.size == bench.shim.has == BASE
    assert bench.pod.vm.bounds.group == before.group
    assert not bench.pod.vm.claims


async def test_what_fits_costs_no_call(bench: Bench) -> None:
    await bench.update(memory_limit_in_bytes=BASE.room * MIB, cpu_quota=70_000)
    await bench.update(memory_limit_in_bytes=100 * MIB)
    assert not bench.resizes()


async def test_a_pods_sum_grows_its_vm_ahead_of_its_containers(bench: Bench) -> None:
    await bench.update_pod(memory_limit_in_bytes=5000 * MIB, cpu_quota=200_000)
    size = bench.pod.vm.size
    assert size.vcpus == 2
    assert size.room >= 5000
    await bench.update(memory_limit_in_bytes=5000 * MIB, cpu_quota=200_000)
    await bench.update_pod(memory_limit_in_bytes=1000 * MIB, cpu_quota=100_000)
    assert bench.pod.vm.size == size, "the container may still have it"
    await bench.update(memory_limit_in_bytes=1000 * MIB, cpu_quota=100_000)
    assert bench.pod.vm.size == BASE


async def test_containers_of_a_pod_are_added_up(bench: Bench) -> None:
    second = await bench.create("d", memory_limit_in_bytes=1024 * MIB)
    size = bench.pod.vm.size
    assert (size.vcpus, size.room >= 2048) == (2, True)
    await bench.update(memory_limit_in_bytes=512 * MIB)
    assert BASE.within(bench.pod.vm.size) and bench.pod.vm.size.within(size)
    assert second in [each.id for each in bench.daemon.index.containers_of(bench.pod_id)]


async def test_who_has_no_limit_may_use_what_there_is(bench: Bench) -> None:
    await bench.update(memory_limit_in_bytes=4096 * MIB)
    size = bench.pod.vm.size
    await bench.update(memory_limit_in_bytes=-1)
    assert bench.pod.vm.size == size
    # The kernel still ends a VM whose guest takes what it was not given.
    assert bench.pod.vm.bounds.group.memory > size.memory_mib * MIB
    assert bench.pod.vm.bounds.guest == 0
    await bench.update(memory_limit_in_bytes=1024 * MIB)
    await bench.update(memory_limit_in_bytes=-1)
    assert bench.pod.vm.size == BASE
    assert bench.pod.vm.bounds.group.memory > BASE.memory_mib * MIB


async def test_what_a_vm_cannot_become_is_refused_and_changes_nothing(bench: Bench) -> None:
    before = bench.pod.vm.bounds
    for wanted in ({"memory_limit_in_bytes": 1 << 40}, {"cpu_quota": 900_000}):
        with pytest.raises(ResourceExhausted, match="can have"):
            await bench.update(**wanted)
        with pytest.raises(ResourceExhausted, match="can have"):
            await bench.update_pod(**wanted)
        with pytest.raises(ResourceExhausted, match="can have"):
            await bench.create("e", memory_limit_in_bytes=1 << 40)
    assert (bench.pod.vm.size, bench.pod.vm.bounds) == (BASE, before)
    assert not bench.resizes()


async def test_a_guest_of_an_older_shim_keeps_its_size(bench: Bench) -> None:
    bench.pod.vm.limit = None
    with pytest.raises(ResourceExhausted, match="can have"):
        await bench.update(memory_limit_in_bytes=4096 * MIB)


@pytest.mark.parametrize(
    "point", ["growth.begin", "growth.grown", "container.update", "pod_resize", "container_update"]
)
async def test_a_step_that_fails_leaves_the_former_size_and_limits(
    bench: Bench, point: str
) -> None:
    before, limits = bench.pod.vm.bounds, bench.in_force
    if point.startswith(("growth", "container.")):
        failpoint.arm(f"{point}=1*error")
    else:
        bench.shim.fail[point] = ResourceExhausted("the guest refuses")
    with pytest.raises(ThawError):
        await bench.update(memory_limit_in_bytes=4096 * MIB, cpu_quota=200_000)
    assert bench.pod.vm.size == bench.shim.has == BASE
    assert (bench.pod.vm.bounds, bench.in_force) == (before, limits)
    assert not bench.pod.vm.claims
    bench.shim.fail.clear()
    await bench.update(memory_limit_in_bytes=4096 * MIB, cpu_quota=200_000)
    assert bench.pod.vm.size.vcpus == 2


@pytest.mark.parametrize("point", ["sandbox.update", "growth.grown"])
async def test_a_sum_that_is_not_recorded_changes_nothing(bench: Bench, point: str) -> None:
    before = bench.pod.vm.bounds
    failpoint.arm(f"{point}=1*error")
    with pytest.raises(failpoint.Injected):
        await bench.update_pod(memory_limit_in_bytes=5000 * MIB, cpu_quota=100_000)
    assert (bench.pod.vm.size, bench.pod.vm.bounds) == (BASE, before)


async def test_a_container_that_is_not_made_leaves_the_vm_as_it_was(bench: Bench) -> None:
    before = bench.pod.vm.bounds
    failpoint.arm("container.create=1*error")
    with pytest.raises(failpoint.Injected):
        await bench.create("d", memory_limit_in_bytes=4096 * MIB)
    assert bench.resizes()
    assert (bench.pod.vm.size, bench.pod.vm.bounds) == (BASE, before)


async def test_what_a_guest_keeps_stays_the_vms(bench: Bench) -> None:
    await bench.update(memory_limit_in_bytes=4096 * MIB)
    bench.shim.keeps = 3000
    await bench.update(memory_limit_in_bytes=1024 * MIB)
    assert bench.pod.vm.size == Size(1, 3000)
    assert bench.in_force.memory_limit_in_bytes == 1024 * MIB
    bench.shim.keeps = 0
    await bench.update(memory_limit_in_bytes=1000 * MIB)
    assert bench.pod.vm.size == BASE


async def test_a_limit_below_what_is_not_given_back_is_undone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.update(memory_limit_in_bytes=4096 * MIB)
    size, bounds, limits = bench.pod.vm.size, bench.pod.vm.bounds, bench.in_force
    monkeypatch.setattr(settle, "held", lambda _vm: 3000 * MIB)
    with pytest.raises(FailedPrecondition, match="holds 3000 MiB"):
        await bench.update(memory_limit_in_bytes=1024 * MIB)
    assert bench.pod.vm.size == bench.shim.has == size
    assert (bench.pod.vm.bounds, bench.in_force) == (bounds, limits)
    told = [
        call[2]["memory"]["limit"] for call in bench.shim.calls if call[0] == "container_update"
    ]
    assert told[-1] == 4096 * MIB
    # So much that giving all of it back would not do: nothing is tried.
    monkeypatch.setattr(settle, "held", lambda _vm: 9000 * MIB)
    asked = len(bench.shim.calls)
    with pytest.raises(FailedPrecondition, match="more than the pod would have"):
        await bench.update(memory_limit_in_bytes=1024 * MIB)
    assert not [call for call in bench.shim.calls[asked:] if call[0] == "pod_resize"]


async def test_a_daemon_that_dies_in_the_midst_leaves_what_the_next_one_mends(
    bench: Bench, tmp_path: Path
) -> None:
    """The next daemon finds a VM that is larger than its pod's limits need."""
    bench.shim.has = Size(2, 4096)
    world = make_world(tmp_path)
    world.daemon.node = Size(8, 32768)
    world.zygote.shims = bench.world.zygote.shims
    await recover(world.daemon)
    pod = world.daemon.index.pods.find(bench.pod_id)
    for _ in range(6000):
        if pod.vm.size == BASE:
            break
        await asyncio.sleep(0.01)
    assert pod.vm.size == BASE
    assert bench.resizes() == [BASE]
    assert pod.vm.bounds.group.memory == bench.pod.vm.bounds.group.memory


async def test_news_of_a_vm_that_a_former_daemon_grew(bench: Bench) -> None:
    """Its shim ended what it was asked for after the next daemon had found the VM as it was."""
    bench.shim.has = Size(1, 4096)
    event = {"event": "pod.resized", "size": {"vcpus": 1, "memory_mib": 4096}}
    bench.daemon.handle_event(bench.pod.vm.id, event)
    assert bench.pod.vm.size == Size(1, 4096)
    for _ in range(6000):
        if bench.pod.vm.size == BASE:
            break
        await asyncio.sleep(0.01)
    assert bench.shim.has == BASE
    # What is no news starts nothing.
    asked = len(bench.resizes())
    bench.shim.keeps = 3000
    await bench.update(memory_limit_in_bytes=4096 * MIB)
    await bench.update(memory_limit_in_bytes=1024 * MIB)
    event["size"] = {"vcpus": 1, "memory_mib": 3000}
    bench.daemon.handle_event(bench.pod.vm.id, event)
    await asyncio.sleep(0)
    assert len(bench.resizes()) == asked + 2


async def test_claims_of_calls_under_way_are_not_taken_back(bench: Bench) -> None:
    config = settle.config_of(bench.pod)
    more = {"x" * 64: Resources(memory_limit_in_bytes=6000 * MIB)}
    async with growth.room(bench.daemon, bench.pod, config, more, more=True):
        size = bench.pod.vm.size
        await bench.update(memory_limit_in_bytes=900 * MIB)
        assert bench.pod.vm.size == size
    await growth.lower(bench.daemon, bench.pod, config)
    assert bench.pod.vm.size == BASE
