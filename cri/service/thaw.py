"""Thaw's own service: pulls and bakes with progress, the pool, traces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from cri.api import thaw_pb2 as api
from cri.daemon import Daemon
from cri.vms import Wire
from hostlib.errors import InvalidArgument
from images.model import Auth, LayerProgress, Progress

T = TypeVar("T")
R = TypeVar("R")

# A client that reads slowly loses messages of progress, never the last one.
MAX_QUEUE = 256


async def with_progress(
    work: Callable[[Callable[[T], None]], Coroutine[Any, Any, R]],
) -> AsyncIterator[T | tuple[R]]:
    """What `work` reports, then a tuple of its one result. `work` ends with its reader."""
    queue: asyncio.Queue[T] = asyncio.Queue(MAX_QUEUE)

    def report(item: T) -> None:
        if not queue.full():
            queue.put_nowait(item)

    task = asyncio.create_task(work(report))
    getter: asyncio.Task[T] | None = None
    try:
        while True:
            getter = asyncio.create_task(queue.get())
            await asyncio.wait({task, getter}, return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                yield getter.result()
                continue
            getter.cancel()
            break
        while not queue.empty():
            yield queue.get_nowait()
        yield (await task,)
    finally:
        for each in (task, getter):
            if each is not None and not each.done():
                each.cancel()
                await asyncio.wait({each})


async def pull(daemon: Daemon, request: api.PullRequest) -> AsyncIterator[api.PullProgress]:
    if not request.image:
        raise InvalidArgument("no image given")
    auth = Auth(request.username, request.password) if request.username else None

    def work(report: Callable[[Progress], None]) -> Coroutine[Any, Any, Any]:
        return daemon.images.pull(request.image, auth=auth, progress=report)

    told: dict[str, LayerProgress] = {}
    async for item in with_progress(work):
        if isinstance(item, tuple):
            yield api.PullProgress(phase="done", image_ref=item[0].id)
            continue
        if item.merging is not None:
            done, total = item.merging
            yield api.PullProgress(phase="merging", current=done, total=total)
        for layer in item.layers:
            # A message for each layer that moved, not for each layer each time.
            if told.get(layer.digest) != layer:
                told[layer.digest] = layer
                yield api.PullProgress(
                    layer=layer.digest, phase=layer.state, current=layer.done, total=layer.total
                )


async def bake(daemon: Daemon, request: api.BakeRequest) -> AsyncIterator[api.BakeProgress]:
    shape = request.shape or daemon.config.guest.default_shape
    if shape not in daemon.config.guest.shapes:
        raise InvalidArgument(
            f"unknown shape {shape!r}", hint="one of: " + ", ".join(daemon.config.guest.shapes)
        )

    def work(report: Callable[[Wire], None]) -> Coroutine[Any, Any, Any]:
        return daemon.snapshots.ensure(shape, report)

    async for item in with_progress(work):
        if isinstance(item, tuple):
            found = item[0]
            yield api.BakeProgress(
                phase="done",
                fraction=1.0,
                key=found.key,
                path=str(found.path),
                accelerator=found.accelerator,
                accelerator_reason=found.accelerator_reason,
                warnings=found.warnings,
            )
        else:
            yield api.BakeProgress(
                phase=str(item.get("phase", "")), fraction=float(item.get("fraction", 0.0))
            )


async def pool(daemon: Daemon, request: api.PoolRequest) -> api.PoolResponse:
    del request
    found = daemon.snapshots.ready(daemon.pool.shape)
    return api.PoolResponse(
        shapes=[
            api.PoolShape(
                shape=daemon.pool.shape,
                snapshot_key=found.key if found else "",
                size=daemon.pool.size,
                ready=len(daemon.pool),
                starting=daemon.pool.starting,
                error=daemon.pool.error,
                max_size=daemon.pool.limits.ceiling,
                pressure=daemon.pool.pressure,
            )
        ],
        accelerator=found.accelerator if found else "",
        accelerator_reason=found.accelerator_reason if found else "",
    )


async def trace(daemon: Daemon, request: api.TraceRequest) -> api.TraceResponse:
    return api.TraceResponse(
        traces=[
            api.Trace(
                pod_sandbox_id=each.pod_id,
                name=each.name,
                namespace=each.namespace,
                started_at=each.started_at,
                steps=[
                    api.Step(
                        name=step.name,
                        offset_ns=step.offset_ns,
                        duration_ns=step.duration_ns,
                        error=step.error,
                    )
                    for step in each.steps
                ],
            )
            for each in daemon.traces.find(request.pod_sandbox_id)
        ]
    )
