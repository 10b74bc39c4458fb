"""ListContainers."""

from __future__ import annotations

from collections.abc import Callable

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Container, Index, matches, shown
from cri.service import container_status
from hostlib import ids
from shim.records import ContainerRecord


async def run(daemon: Daemon, request: v1.ListContainersRequest) -> v1.ListContainersResponse:
    fits = filtered(request.filter)
    found = [shown(each, _alone) for each in asked(daemon.index, request.filter) if fits(each)]
    # Encoded messages in a row are one message with the items of all.
    return v1.ListContainersResponse.FromString(b"".join(found))


def _alone(record: ContainerRecord) -> bytes:
    return v1.ListContainersResponse(containers=[item(record)]).SerializeToString()


def asked(index: Index, wanted: v1.ContainerFilter) -> list[Container]:
    """Those that the filter can mean."""
    if not wanted.id and ids.is_object_id(wanted.pod_sandbox_id):
        return index.containers_of(wanted.pod_sandbox_id)
    return index.containers.asked(wanted.id, wanted.label_selector)


def filtered(wanted: v1.ContainerFilter) -> Callable[[Container], bool]:
    """Whether a container passes the filter, its id aside."""
    # Read once: a field of a message costs more than all else here.
    pod_id, labels = wanted.pod_sandbox_id, dict(wanted.label_selector)
    state = wanted.state.state if wanted.HasField("state") else None
    if not pod_id and not labels and state is None:
        return lambda _: True

    def fits(container: Container) -> bool:
        record = container.record
        return (
            record.pod_id.startswith(pod_id)
            and (state is None or state == container_status.state(record))
            and matches(labels, record.labels)
        )

    return fits


def item(record: ContainerRecord) -> v1.Container:
    return v1.Container(
        id=record.id,
        pod_sandbox_id=record.pod_id,
        metadata=v1.ContainerMetadata(name=record.metadata.name, attempt=record.metadata.attempt),
        image=container_status.image_spec(record),
        image_ref=record.image.id,
        image_id=record.image.id,
        state=container_status.state(record),
        created_at=record.created_at,
        labels=record.labels,
        annotations=record.annotations,
    )
