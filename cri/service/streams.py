"""The streamed lists: each item of the moment of the call once, a few in each message.

A unary list fails beyond 16 MiB. A stream holds the entries, which the index has anyway, and one
message at a time; what was removed before its turn is left out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Final, TypeVar

from google.protobuf.message import Message

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.service import container_list, image_list, sandbox_list

MAX_ITEMS: Final = 128
MAX_BYTES: Final = 256 * 1024
"""Of one message; an item that is larger comes alone."""

I = TypeVar("I", bound=Message)  # noqa: E741 (an item)


def batches(items: Iterable[I]) -> Iterator[list[I]]:
    """The items in order, as many together as a message may hold."""
    batch: list[I] = []
    size = 0
    for item in items:
        weight = item.ByteSize()
        if batch and (len(batch) >= MAX_ITEMS or size + weight > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += weight
    if batch:
        yield batch


R = TypeVar("R")


async def _each(items: Iterable[I], make: Callable[[list[I]], R]) -> AsyncIterator[R]:
    for batch in batches(items):
        yield make(batch)


def pods(
    daemon: Daemon, request: v1.StreamPodSandboxesRequest
) -> AsyncIterator[v1.StreamPodSandboxesResponse]:
    index, wanted = daemon.index, request.filter
    fits = sandbox_list.filtered(wanted)
    found = index.pods.asked(wanted.id, wanted.label_selector)
    items = (
        sandbox_list.item(pod.record)
        for pod in found
        if index.pods.exact(pod.id) is pod and fits(pod)
    )
    return _each(items, lambda batch: v1.StreamPodSandboxesResponse(pod_sandboxes=batch))


def containers(
    daemon: Daemon, request: v1.StreamContainersRequest
) -> AsyncIterator[v1.StreamContainersResponse]:
    index, wanted = daemon.index, request.filter
    fits = container_list.filtered(wanted)
    items = (
        container_list.item(each.record)
        for each in container_list.asked(index, wanted)
        if index.containers.exact(each.id) is each and fits(each)
    )
    return _each(items, lambda batch: v1.StreamContainersResponse(containers=batch))


def images(
    daemon: Daemon, request: v1.StreamImagesRequest
) -> AsyncIterator[v1.StreamImagesResponse]:
    items = image_list.items(daemon, request.filter)
    return _each(items, lambda batch: v1.StreamImagesResponse(images=batch))
