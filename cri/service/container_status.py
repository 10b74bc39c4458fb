"""ContainerStatus."""

from __future__ import annotations

import json
import time

from google.protobuf import json_format

from cri import signals
from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Container
from shim.records import ContainerRecord

_STATES = {
    "created": v1.CONTAINER_CREATED,
    "running": v1.CONTAINER_RUNNING,
    "exited": v1.CONTAINER_EXITED,
}


async def run(daemon: Daemon, request: v1.ContainerStatusRequest) -> v1.ContainerStatusResponse:
    container = daemon.index.containers.find(request.container_id)
    info = {}
    if request.verbose:
        info["info"] = json.dumps(
            {
                "sandboxID": container.record.pod_id,
                "image": container.record.image.id,
                "config": container.record.config,
                "process": container.process,
            }
        )
    return v1.ContainerStatusResponse(status=status(container), info=info)


def state(record: ContainerRecord) -> v1.ContainerState:
    return _STATES[record.state]


def reason(record: ContainerRecord) -> str:
    """Completed, Error, OOMKilled, StartError; empty before the end."""
    if record.state != "exited":
        return ""
    return record.reason or ("Error" if record.exit_code else "Completed")


def image_spec(record: ContainerRecord) -> v1.ImageSpec:
    """The image as the request named it."""
    asked = record.config.get("image") or {}
    return v1.ImageSpec(
        image=record.image.ref,
        user_specified_image=record.image.ref,
        annotations=asked.get("annotations"),
    )


def config_of(record: ContainerRecord) -> v1.ContainerConfig:
    """The request's config, from the record."""
    config = v1.ContainerConfig()
    json_format.ParseDict(record.config, config, ignore_unknown_fields=True)
    return config


def status(container: Container) -> v1.ContainerStatus:
    record = container.record
    config = config_of(record)
    user = None
    if record.user:
        linux = v1.LinuxContainerUser(
            uid=record.user["uid"],
            gid=record.user["gid"],
            supplemental_groups=record.user["additionalGids"],
        )
        user = v1.ContainerUser(linux=linux)
    return v1.ContainerStatus(
        id=record.id,
        metadata=v1.ContainerMetadata(name=record.metadata.name, attempt=record.metadata.attempt),
        state=state(record),
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=_finished_at(record),
        exit_code=record.exit_code,
        image=image_spec(record),
        image_ref=record.image.id,
        image_id=record.image.id,
        reason=reason(record),
        message=record.message,
        labels=record.labels,
        annotations=record.annotations,
        mounts=config.mounts,
        log_path=record.log_path,
        resources=v1.ContainerResources(linux=config.linux.resources),
        user=user,
        stop_signal=signals.to_response(record.stop_signal),
    )


def _finished_at(record: ContainerRecord) -> int:
    if record.state == "exited":
        return record.finished_at or time.time_ns()
    return 0
