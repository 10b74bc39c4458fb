"""GetContainerEvents and the streamed lists, over a real gRPC connection."""

from __future__ import annotations

import asyncio
import dataclasses
import tracemalloc
from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
import pytest

from cri.api import v1_pb2 as v1
from cri.events import Events
from cri.index import Container, Pod
from cri.service import (
    container_list,
    container_stats,
    sandbox_metrics,
    sandbox_stats,
    streams,
)
from cri.tests.client import Client
from cri.tests.fakes import IMAGE, World
from cri.vms import Vm
from hostlib import ids
from hostlib.errors import ResourceExhausted, Unavailable
from shim.records import ContainerMetadata, ContainerRecord, ImageRecord, PodMetadata, PodRecord

CREATED, STARTED = v1.CONTAINER_CREATED_EVENT, v1.CONTAINER_STARTED_EVENT
STOPPED, DELETED = v1.CONTAINER_STOPPED_EVENT, v1.CONTAINER_DELETED_EVENT


async def listen(client: Client) -> Any:
    before = len(client.world.daemon.events)
    call = client.runtime.GetContainerEvents(v1.GetEventsRequest())
    await listeners(client.world.daemon.events, before + 1)
    return call


async def listeners(events: Events[Any], count: int) -> None:
    async with asyncio.timeout(60):
        while len(events) != count:  # noqa: ASYNC110 (a stream's end is no event here)
            await asyncio.sleep(0.01)


async def read(call: Any, count: int) -> list[v1.ContainerEventResponse]:
    async with asyncio.timeout(60):
        return [await call.read() for _ in range(count)]


def told(events: Iterable[v1.ContainerEventResponse]) -> list[tuple[str, int]]:
    return [(each.container_id, each.container_event_type) for each in events]


async def test_a_life_is_told_with_the_status_of_its_pod(client: Client) -> None:
    call = await listen(client)
    pod = await client.run()
    container = await client.create(pod)
    await client.runtime.StartContainer(v1.StartContainerRequest(container_id=container))
    client.shim(pod).exits(container, 3)
    events = await read(call, 5)
    expected = [
        (pod, CREATED), (pod, STARTED), (container, CREATED), (container, STARTED),
        (container, STOPPED),
    ]  # fmt: skip
    assert told(events) == expected
    states = [[each.state for each in event.containers_statuses] for event in events]
    assert states == [
        [], [], [v1.CONTAINER_CREATED], [v1.CONTAINER_RUNNING], [v1.CONTAINER_EXITED],
    ]  # fmt: skip
    assert all(event.pod_sandbox_status.id == pod for event in events)
    assert all(event.pod_sandbox_status.metadata.uid == "u" for event in events)
    assert events[-1].containers_statuses[0].exit_code == 3
    times = [event.created_at for event in events]
    assert times == sorted(times)
    assert times[0] > 0

    await client.runtime.RemoveContainer(v1.RemoveContainerRequest(container_id=container))
    await client.runtime.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    events = await read(call, 3)
    assert told(events) == [(container, DELETED), (pod, STOPPED), (pod, DELETED)]
    assert not events[0].containers_statuses
    assert events[-1].pod_sandbox_status.state == v1.SANDBOX_NOTREADY


async def test_what_a_pods_end_ends_is_told(client: Client) -> None:
    pod = await client.run()
    running, waiting = await client.create(pod, "a"), await client.create(pod, "b")
    await client.runtime.StartContainer(v1.StartContainerRequest(container_id=running))
    call = await listen(client)
    client.shim(pod).fail["pod_stop"] = Unavailable("gone")
    await client.runtime.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert told(await read(call, 6)) == [
        (running, STOPPED), (waiting, STOPPED), (pod, STOPPED),
        (running, DELETED), (waiting, DELETED), (pod, DELETED),
    ]  # fmt: skip


async def test_a_container_removed_as_it_runs_has_stopped(client: Client) -> None:
    pod = await client.run()
    container = await client.create(pod)
    await client.runtime.StartContainer(v1.StartContainerRequest(container_id=container))
    call = await listen(client)
    await client.runtime.RemoveContainer(v1.RemoveContainerRequest(container_id=container))
    assert told(await read(call, 2)) == [(container, STOPPED), (container, DELETED)]


async def test_a_process_that_ends_before_its_start_is_answered_has_started(
    client: Client,
) -> None:
    pod = await client.run()
    container = await client.create(pod)
    call = await listen(client)
    shim = client.shim(pod)
    start = shim.container_start

    async def ends_at_once(container_id: str) -> int:
        found = await start(container_id)
        shim.exits(container_id, 0)
        return found

    shim.container_start = ends_at_once  # type: ignore[method-assign]
    await client.runtime.StartContainer(v1.StartContainerRequest(container_id=container))
    assert told(await read(call, 2)) == [(container, STARTED), (container, STOPPED)]


async def test_one_who_does_not_read_is_ended_and_holds_up_nobody(
    client: Client,
) -> None:
    events: Events[v1.ContainerEventResponse] = Events(waiting=50)
    client.world.daemon.events = events
    deaf, hearing = await listen(client), await listen(client)
    assert len(events) == 2
    heard = 0
    big = v1.ContainerEventResponse(container_id="x" * 100_000)
    async with asyncio.timeout(60):
        while len(events) == 2:
            events.publish(lambda: big)
            assert (await hearing.read()).container_id == big.container_id
            heard += 1
        for _ in range(60):
            events.publish(lambda: big)
            await hearing.read()
    assert heard > 50
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(60):
            while await deaf.read():
                pass
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "listen anew" in (caught.value.details() or "")
    hearing.cancel()
    await listeners(events, 0)


async def test_listeners_are_bounded(client: Client) -> None:
    client.world.daemon.events = Events(listeners=1)
    await listen(client)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.runtime.GetContainerEvents(v1.GetEventsRequest()).read()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_no_message_is_made_for_nobody() -> None:
    events: Events[str] = Events()
    events.publish(lambda: pytest.fail("made"))


async def test_a_listener_that_fell_behind_keeps_nothing() -> None:
    events: Events[int] = Events(waiting=3)
    with events.listen() as slow, events.listen() as quick:
        for number in range(5):
            events.publish(lambda number=number: number)  # type: ignore[misc]
            assert await quick.next() == number
        with pytest.raises(ResourceExhausted):
            await slow.next()
        assert len(events) == 1


def _pod(number: int) -> Pod:
    record = PodRecord(
        id=f"{number:064x}",
        metadata=PodMetadata(f"pod{number}", f"uid{number}", "default", 0),
        created_at=number + 1,
    )
    return Pod(record, Vm(ids.new_vm_id(), None, None, "", "", None))  # type: ignore[arg-type]


def _container(number: int, pod: Pod) -> Container:
    record = ContainerRecord(
        id=f"{number:064x}",
        pod_id=pod.id,
        metadata=ContainerMetadata(f"c{number}", 0),
        created_at=number + 1,
        image=ImageRecord("shell", IMAGE.id),
        labels={"number": str(number)},
        annotations={"note": "a" * 400},
    )
    return Container(record)


def fill(world: World, pods: int, each: int) -> None:
    index = world.daemon.index
    for number in range(pods):
        pod = _pod(number)
        index.pods.add(pod)
        for other in range(each):
            index.containers.add(_container(number * each + other, pod))


async def test_a_stream_of_20000_containers_holds_one_message_at_a_time(
    client: Client,
) -> None:
    fill(client.world, 100, 200)
    daemon = client.world.daemon
    request = v1.StreamContainersRequest()
    seen: list[str] = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        async for message in streams.containers(daemon, request):
            assert message.ByteSize() < 1024 * 1024
            seen += [each.id for each in message.containers]
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    ids_ = [each.id for each in daemon.index.containers]
    assert seen == ids_
    # The ids themselves, and the entries' list; all messages would be over 16 MiB.
    assert peak < 6 * 1024 * 1024, peak
    whole = sum(container_list.item(e.record).ByteSize() for e in daemon.index.containers)
    assert whole > 12 * 1024 * 1024
    assert all(each.shown is None for each in daemon.index.containers)


async def test_streams_over_the_wire_have_each_item_once(client: Client) -> None:
    fill(client.world, 100, 200)
    runtime = client.runtime

    async def of(call: Any, field: str) -> list[str]:
        return [item.id async for message in call for item in getattr(message, field)]

    daemon = client.world.daemon
    found = await of(runtime.StreamContainers(v1.StreamContainersRequest()), "containers")
    assert found == [each.id for each in daemon.index.containers]
    found = await of(runtime.StreamPodSandboxes(v1.StreamPodSandboxesRequest()), "pod_sandboxes")
    assert found == [each.id for each in daemon.index.pods]
    wanted = v1.ContainerFilter(label_selector={"number": "7"})
    found = await of(
        runtime.StreamContainers(v1.StreamContainersRequest(filter=wanted)), "containers"
    )
    assert found == [f"{7:064x}"]
    found = await of(client.image.StreamImages(v1.StreamImagesRequest()), "images")
    assert found == [IMAGE.id]


async def test_stats_and_metrics_of_20000_containers_are_streamed_pod_by_pod(
    client: Client,
) -> None:
    fill(client.world, 100, 200)
    daemon = client.world.daemon
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        seen: list[str] = []
        async for message in container_stats.stream(daemon, v1.StreamContainerStatsRequest()):
            assert message.ByteSize() < 1024 * 1024
            seen += [each.attributes.id for each in message.container_stats]
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert seen == [each.id for each in daemon.index.containers]
    pods: list[str] = []
    async for told in sandbox_stats.stream(daemon, v1.StreamPodSandboxStatsRequest()):
        [one] = told.pod_sandbox_stats
        pods.append(one.attributes.id)
        assert len(one.linux.containers) == 200
    measured: list[str] = []
    async for found in sandbox_metrics.stream(daemon, v1.StreamPodSandboxMetricsRequest()):
        measured += [each.pod_sandbox_id for each in found.pod_sandbox_metrics]
    assert pods == measured == [each.id for each in daemon.index.pods]
    # The containers' own rates, which stay, are most of it.
    assert peak < 12 * 1024 * 1024, peak


async def test_what_goes_before_its_turn_is_left_out(client: Client) -> None:
    fill(client.world, 2, 200)
    index = client.world.daemon.index
    stream = streams.containers(client.world.daemon, v1.StreamContainersRequest())
    first = await anext(stream)
    gone = list(index.containers)[300]
    index.containers.discard(gone.id)
    late = dataclasses.replace(gone.record, id="f" * 64)
    index.containers.add(Container(late))
    seen = [each.id for each in first.containers]
    async for message in stream:
        seen += [each.id for each in message.containers]
    assert len(seen) == len(set(seen)) == 399
    assert gone.id not in seen


async def test_a_pods_status_and_its_containers_have_one_time(client: Client) -> None:
    pod = await client.run()
    container = await client.create(pod)
    request = v1.PodSandboxStatusRequest(pod_sandbox_id=pod)
    found = await client.runtime.PodSandboxStatus(request)
    assert found.timestamp > 0
    assert [each.id for each in found.containers_statuses] == [container]
