"""ListMetricDescriptors, ListPodSandboxMetrics and its stream: what the kubelet passes on at
``/metrics/cadvisor``."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Container
from cri.service import container_status
from cri.stats import metrics


async def descriptors(
    daemon: Daemon, request: v1.ListMetricDescriptorsRequest
) -> v1.ListMetricDescriptorsResponse:
    del daemon, request
    return v1.ListMetricDescriptorsResponse(descriptors=metrics.descriptors())


async def list_(
    daemon: Daemon, request: v1.ListPodSandboxMetricsRequest
) -> v1.ListPodSandboxMetricsResponse:
    del request
    return v1.ListPodSandboxMetricsResponse(pod_metrics=[each async for each in read(daemon)])


async def stream(
    daemon: Daemon, request: v1.StreamPodSandboxMetricsRequest
) -> AsyncIterator[v1.StreamPodSandboxMetricsResponse]:
    del request
    async for each in read(daemon):
        yield v1.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=[each])


async def read(daemon: Daemon) -> AsyncIterator[v1.PodSandboxMetrics]:
    index = daemon.index
    async for pod, reading in daemon.collector.each(pod for pod in index.pods if pod.ready):
        if index.pods.exact(pod.id) is pod:
            yield metrics.of_pod(pod, reading, index.containers_of(pod.id), _asked)


def _asked(container: Container) -> v1.LinuxContainerResources:
    return container_status.config_of(container.record).linux.resources
