"""Thaw's own service: bakes with progress, the pool, traces; `thaw_images` has the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from cri.api import thaw_pb2 as api
from cri.daemon import Daemon
from cri.service.progress import with_progress
from cri.vms import Wire
from hostlib.errors import InvalidArgument


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
