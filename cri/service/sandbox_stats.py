"""PodSandboxStats, and the lists of them. A pod that is not ready has none, as with containerd."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Pod, matches
from cri.service import container_stats
from cri.stats import messages
from cri.stats.collect import Reading
from hostlib.errors import FailedPrecondition


async def run(daemon: Daemon, request: v1.PodSandboxStatsRequest) -> v1.PodSandboxStatsResponse:
    pod = daemon.index.pods.find(request.pod_sandbox_id)
    if not pod.ready:
        raise FailedPrecondition(
            f"pod {pod.id} is not ready: {pod.record.reason}", hint="only a ready pod has stats"
        )
    return v1.PodSandboxStatsResponse(stats=stats(daemon, pod, await daemon.collector.read(pod)))


async def list_(
    daemon: Daemon, request: v1.ListPodSandboxStatsRequest
) -> v1.ListPodSandboxStatsResponse:
    return v1.ListPodSandboxStatsResponse(
        stats=[each async for each in read(daemon, request.filter)]
    )


async def stream(
    daemon: Daemon, request: v1.StreamPodSandboxStatsRequest
) -> AsyncIterator[v1.StreamPodSandboxStatsResponse]:
    async for each in read(daemon, request.filter):
        yield v1.StreamPodSandboxStatsResponse(pod_sandbox_stats=[each])


async def read(
    daemon: Daemon, wanted: v1.PodSandboxStatsFilter
) -> AsyncIterator[v1.PodSandboxStats]:
    pods = [
        pod
        for pod in daemon.index.pods.asked(wanted.id, wanted.label_selector)
        if pod.ready and matches(wanted.label_selector, pod.record.labels)
    ]
    async for pod, reading in daemon.collector.each(pods):
        if daemon.index.pods.exact(pod.id) is pod:
            yield stats(daemon, pod, reading)


def stats(daemon: Daemon, pod: Pod, reading: Reading) -> v1.PodSandboxStats:
    containers = daemon.index.containers_of(pod.id)
    return messages.pod(
        pod, reading, (container_stats.stats(daemon, each, reading) for each in containers)
    )
