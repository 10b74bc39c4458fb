"""ListPodSandbox."""

from __future__ import annotations

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Pod, matches
from cri.service import sandbox_status


async def run(daemon: Daemon, request: v1.ListPodSandboxRequest) -> v1.ListPodSandboxResponse:
    wanted = request.filter
    return v1.ListPodSandboxResponse(
        items=[_item(pod) for pod in daemon.index.pods.prefixed(wanted.id) if fits(pod, wanted)]
    )


def fits(pod: Pod, wanted: v1.PodSandboxFilter) -> bool:
    """Whether the pod passes the filter, its id aside."""
    if wanted.HasField("state") and wanted.state.state != sandbox_status.state(pod.record):
        return False
    return matches(wanted.label_selector, pod.record.labels)


def _item(pod: Pod) -> v1.PodSandbox:
    record = pod.record
    return v1.PodSandbox(
        id=record.id,
        metadata=sandbox_status.metadata(record),
        state=sandbox_status.state(record),
        created_at=record.created_at,
        labels=record.labels,
        annotations=record.annotations,
        runtime_handler=record.runtime_handler,
    )
