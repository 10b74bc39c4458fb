"""ListContainers."""

from __future__ import annotations

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Container, Index, matches, shown_container
from cri.service import container_status
from hostlib import ids
from shim.records import ContainerRecord


async def run(daemon: Daemon, request: v1.ListContainersRequest) -> v1.ListContainersResponse:
    wanted = request.filter
    return v1.ListContainersResponse(
        containers=[
            shown_container(each, item)
            for each in asked(daemon.index, wanted)
            if fits(each, wanted)
        ]
    )


def asked(index: Index, wanted: v1.ContainerFilter) -> list[Container]:
    """Those that the filter can mean."""
    if not wanted.id and ids.is_object_id(wanted.pod_sandbox_id):
        return index.containers_of(wanted.pod_sandbox_id)
    return index.containers.asked(wanted.id, wanted.label_selector)


def fits(container: Container, wanted: v1.ContainerFilter) -> bool:
    """Whether the container passes the filter, its id aside."""
    record = container.record
    if not record.pod_id.startswith(wanted.pod_sandbox_id):
        return False
    if wanted.HasField("state") and wanted.state.state != container_status.state(record):
        return False
    return matches(wanted.label_selector, record.labels)


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
