"""ContainerStats, and the lists of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Container, Pod, matches
from cri.service.streams import batches
from cri.stats import messages
from cri.stats.collect import Reading
from hostlib import ids


async def run(daemon: Daemon, request: v1.ContainerStatsRequest) -> v1.ContainerStatsResponse:
    container = daemon.index.containers.find(request.container_id)
    reading = await daemon.collector.read(daemon.pod_of(container.record))
    return v1.ContainerStatsResponse(stats=stats(daemon, container, reading))


async def list_(
    daemon: Daemon, request: v1.ListContainerStatsRequest
) -> v1.ListContainerStatsResponse:
    found: dict[str, v1.ContainerStats] = {}
    wanted = asked(daemon, request.filter)
    async for _, some in read(daemon, wanted):
        found.update({each.attributes.id: each for each in some})
    # In the order of the other lists.
    return v1.ListContainerStatsResponse(
        stats=[found[each.id] for each in wanted if each.id in found]
    )


async def stream(
    daemon: Daemon, request: v1.StreamContainerStatsRequest
) -> AsyncIterator[v1.StreamContainerStatsResponse]:
    async for _, some in read(daemon, asked(daemon, request.filter)):
        for batch in batches(some):
            yield v1.StreamContainerStatsResponse(container_stats=batch)


def asked(daemon: Daemon, wanted: v1.ContainerStatsFilter) -> list[Container]:
    """The containers that the filter means."""
    index = daemon.index
    if not wanted.id and ids.is_object_id(wanted.pod_sandbox_id):
        found = index.containers_of(wanted.pod_sandbox_id)
    else:
        found = index.containers.asked(wanted.id, wanted.label_selector)
    return [
        each
        for each in found
        if each.record.pod_id.startswith(wanted.pod_sandbox_id)
        and matches(wanted.label_selector, each.record.labels)
    ]


async def read(
    daemon: Daemon, wanted: list[Container]
) -> AsyncIterator[tuple[Pod, list[v1.ContainerStats]]]:
    """What is wanted, pod by pod; what is removed meanwhile is left out."""
    index = daemon.index
    groups: dict[str, list[Container]] = {}
    for each in wanted:
        groups.setdefault(each.record.pod_id, []).append(each)
    pods = (pod for pod_id in groups if (pod := index.pods.exact(pod_id)) is not None)
    async for pod, reading in daemon.collector.each(pods):
        yield (
            pod,
            [
                stats(daemon, each, reading)
                for each in groups[pod.id]
                if index.containers.exact(each.id) is each
            ],
        )


def stats(daemon: Daemon, container: Container, reading: Reading) -> v1.ContainerStats:
    return messages.container(container, reading, str(daemon.scratch_folder))
