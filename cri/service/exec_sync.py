"""ExecSync: a command in a container, its output (16 MiB of each stream), its exit code."""

from __future__ import annotations

from cri import settle
from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Container, Pod
from cri.oci import spec as oci_spec
from cri.service import container_status
from cri.vms import Wire
from hostlib import failpoint
from hostlib.errors import InvalidArgument
from images.model import ImageConfig
from shim.records import ContainerRecord

MAX_OUTPUT = 16 * 1024 * 1024
"""Of each stream, in bytes; the server's own limit on messages leaves room for both."""


async def run(daemon: Daemon, request: v1.ExecSyncRequest) -> v1.ExecSyncResponse:
    if not request.cmd:
        raise InvalidArgument("no command to run", hint="set cmd")
    if request.timeout < 0:
        raise InvalidArgument(f"timeout is {request.timeout}", hint="seconds; 0 is no limit")
    container, pod = daemon.running_container(request.container_id)
    process = oci_spec.exec_process(
        {"process": process_of(daemon, container, pod)}, list(request.cmd), tty=False
    )
    await failpoint.hit("exec_sync")
    result = await daemon.shim_of(pod).exec_sync(container.id, process, float(request.timeout))
    return v1.ExecSyncResponse(
        stdout=result.stdout[:MAX_OUTPUT],
        stderr=result.stderr[:MAX_OUTPUT],
        exit_code=result.exit_code,
    )


def process_of(daemon: Daemon, container: Container, pod: Pod) -> Wire:
    """The container's own process object; built anew for one that was adopted."""
    if container.process is None:
        record = container.record
        found = daemon.images.get(record.image.id)
        # Of an image that was removed since, only the container's own settings are left.
        image = found.config if found is not None else ImageConfig(cmd=("true",))
        built = oci_spec.build(
            record.id,
            settle.config_of(pod),
            container_status.config_of(record),
            image,
            hostname=pod.record.hostname,
        )
        container.process = built.spec["process"]
    # As it was found in the guest: the container's own files may say something else by now.
    return {**container.process, "user": user_of(container.record) or container.process["user"]}


def user_of(record: ContainerRecord) -> Wire:
    """The OCI user that the container's process has, {} for a container of an older version."""
    return {key: record.user[key] for key in ("uid", "gid", "additionalGids") if key in record.user}
