"""RemoveContainer: killed if it runs, and all that is its own removed."""

from __future__ import annotations

import contextlib
import time

from cri import settle
from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Container
from hostlib import failpoint
from hostlib.errors import NotFound, Unavailable
from hostlib.tasks import in_thread
from shim.records import container_path


async def run(daemon: Daemon, request: v1.RemoveContainerRequest) -> v1.RemoveContainerResponse:
    try:
        container = daemon.index.containers.find(request.container_id)
    except NotFound:
        return v1.RemoveContainerResponse()
    await remove(daemon, container)
    return v1.RemoveContainerResponse()


async def remove(daemon: Daemon, container: Container) -> None:
    await failpoint.hit("container.remove")
    pod = daemon.pod_of(container.record)
    try:
        await daemon.shim_of(pod).container_remove(container.id)
    except Unavailable:
        # The shim is dead: the record is all that is left.
        path = container_path(pod.vm.folder, container.id)
        with contextlib.suppress(FileNotFoundError):
            await in_thread(path.unlink)
    daemon.index.remove_container(container, time.time_ns())
    daemon.release_images(container.record)
    if pod.ready:
        await settle.settle(daemon, pod, settle.config_of(pod))
