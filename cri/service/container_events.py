"""GetContainerEvents: what happens to pods and containers, from now on.

Each event has the status of its pod and of all containers of it at one instant, as containerd's
do. A pod itself is told of with its own id as the container's. Of what is removed the event has
what remains: of a container its pod, of a pod its last status.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Change, Index
from cri.service import container_status, sandbox_status

_TYPES: Final = {
    Change.CREATED: v1.CONTAINER_CREATED_EVENT,
    Change.STARTED: v1.CONTAINER_STARTED_EVENT,
    Change.STOPPED: v1.CONTAINER_STOPPED_EVENT,
    Change.DELETED: v1.CONTAINER_DELETED_EVENT,
}

Write = Callable[[v1.ContainerEventResponse], Awaitable[None]]


async def run(daemon: Daemon, request: v1.GetEventsRequest, write: Write) -> None:
    """Write events for as long as the client listens. Raises `ResourceExhausted` when it does not
    read them."""
    del request
    with daemon.events.listen() as listener:

        async def pump() -> None:
            while True:
                await write(await listener.next())

        # A client that does not read holds the write up, which would never hear of it.
        work = asyncio.create_task(pump(), name="events")
        late = asyncio.create_task(listener.behind.wait(), name="events' watch")
        try:
            await asyncio.wait({work, late}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (work, late):
                each.cancel()
            await asyncio.wait({work, late})
        with contextlib.suppress(asyncio.CancelledError):
            work.result()
        raise listener.too_slow()


def message(index: Index, change: Change, entry_id: str, pod_id: str) -> v1.ContainerEventResponse:
    """The event of a change that is in the index already, but for the pod that is about to go."""
    pod = index.pods.exact(pod_id)
    return v1.ContainerEventResponse(
        container_id=entry_id,
        container_event_type=_TYPES[change],
        created_at=time.time_ns(),
        pod_sandbox_status=sandbox_status.status(pod) if pod is not None else None,
        containers_statuses=[container_status.status(each) for each in index.containers_of(pod_id)],
    )


def connect(daemon: Daemon) -> None:
    """From now on listeners are told of the index's changes."""

    def notify(change: Change, entry_id: str, pod_id: str) -> None:
        daemon.events.publish(lambda: message(daemon.index, change, entry_id, pod_id))

    daemon.index.notify = notify
