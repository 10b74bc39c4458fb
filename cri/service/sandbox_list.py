"""ListPodSandbox."""

from __future__ import annotations

from collections.abc import Callable

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Pod, matches, shown
from cri.service import sandbox_status
from shim.records import PodRecord


async def run(daemon: Daemon, request: v1.ListPodSandboxRequest) -> v1.ListPodSandboxResponse:
    wanted = request.filter
    fits = filtered(wanted)
    pods = daemon.index.pods.asked(wanted.id, wanted.label_selector)
    # Encoded messages in a row are one message with the items of all.
    return v1.ListPodSandboxResponse.FromString(
        b"".join(shown(pod, _alone) for pod in pods if fits(pod))
    )


def _alone(record: PodRecord) -> bytes:
    return v1.ListPodSandboxResponse(items=[item(record)]).SerializeToString()


def filtered(wanted: v1.PodSandboxFilter) -> Callable[[Pod], bool]:
    """Whether a pod passes the filter, its id aside."""
    # Read once: a field of a message costs more than all else here.
    labels = dict(wanted.label_selector)
    state = wanted.state.state if wanted.HasField("state") else None
    if not labels and state is None:
        return lambda _: True

    def fits(pod: Pod) -> bool:
        record = pod.record
        return (state is None or state == sandbox_status.state(record)) and matches(
            labels, record.labels
        )

    return fits


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
