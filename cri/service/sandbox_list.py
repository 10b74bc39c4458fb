"""ListPodSandbox."""

from __future__ import annotations

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Pod, matches, shown_pod
from cri.service import sandbox_status
from shim.records import PodRecord


async def run(daemon: Daemon, request: v1.ListPodSandboxRequest) -> v1.ListPodSandboxResponse:
    wanted = request.filter
    pods = daemon.index.pods.asked(wanted.id, wanted.label_selector)
    return v1.ListPodSandboxResponse(
        items=[shown_pod(pod, item) for pod in pods if fits(pod, wanted)]
    )


def fits(pod: Pod, wanted: v1.PodSandboxFilter) -> bool:
    """Whether the pod passes the filter, its id aside."""
    if wanted.HasField("state") and wanted.state.state != sandbox_status.state(pod.record):
        return False
    return matches(wanted.label_selector, pod.record.labels)


def item(record: PodRecord) -> v1.PodSandbox:
    return v1.PodSandbox(
        id=record.id,
        metadata=sandbox_status.metadata(record),
        state=sandbox_status.state(record),
        created_at=record.created_at,
        labels=record.labels,
        annotations=record.annotations,
        runtime_handler=record.runtime_handler,
    )
