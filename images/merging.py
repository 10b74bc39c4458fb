"""The merges of an image store: one at a time, those that somebody waits for first.

A merge is two niced processes, `images.merge_stream` and sqfstar, with a pipe between. One that
nobody waits for gives way to one that somebody does, and is begun anew afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hostlib import failpoint, process
from hostlib.errors import (
    FailedPrecondition,
    Internal,
    NotFound,
    ResourceExhausted,
    ThawError,
    from_dict,
)
from hostlib.process import ENVIRONMENT
from hostlib.tasks import in_thread
from images import squashfs
from images.merge_stream import BROKEN_PIPE
from images.model import Limits
from images.store import Store, chain_id, full

log = logging.getLogger(__name__)

NICE: Final = 10
"""Pods go first."""
_REPORT_EVERY: Final = 0.2

DiffIds = tuple[str, ...]
Report = Callable[[int, int], None]
Commit = Callable[[Path | None, DiffIds], Awaitable[None]]


@dataclass
class _Job:
    diff_ids: DiffIds
    background: bool
    """Whether it goes on though nobody waits."""
    done: asyncio.Future[None]
    waiters: int = 0
    reports: list[Report] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class Merger:
    """Merges layers that are in the store. `commit` makes a finished file the images', or, for
    None, the one that is there already."""

    def __init__(self, store: Store, limits: Limits, commit: Commit) -> None:
        self._store = store
        self._limits = limits
        self._commit = commit
        self._jobs: dict[DiffIds, _Job] = {}
        self._worker: asyncio.Task[None] | None = None
        self._running: _Job | None = None
        self._closed = False

    async def close(self) -> None:
        """Give up all merges. Idempotent."""
        self._closed = True
        for diff_ids in list(self._jobs):
            await self.cancel(diff_ids)
        if self._worker is not None:
            await asyncio.wait([self._worker])

    def later(self, diff_ids: DiffIds) -> None:
        """Merge in the background, unless it is done; a failure is logged."""
        if not self._closed and not self._store.merged_path(diff_ids).exists():
            self._job(diff_ids).background = True

    async def now(self, diff_ids: DiffIds, report: Report | None = None) -> None:
        """Merge before all that nobody waits for, and return when it is done.

        Raises `ResourceExhausted` for a full disk or too many files, `DataLoss`, `Internal`, and
        `NotFound` when it is given up.
        """
        if self._closed:
            raise FailedPrecondition("the image store is closed")
        if diff_ids not in self._jobs and self._store.merged_path(diff_ids).exists():
            await self._commit(None, diff_ids)
            return
        job = self._job(diff_ids)
        job.waiters += 1
        if report is not None:
            job.reports.append(report)
        running = self._running
        if running is not None and running is not job and not running.waiters and running.task:
            running.task.cancel()
        try:
            await asyncio.shield(job.done)
        finally:
            job.waiters -= 1
            if report is not None:
                job.reports.remove(report)
            if not job.waiters and not job.background:
                await self.cancel(diff_ids, job)

    async def cancel(self, diff_ids: DiffIds, only: _Job | None = None) -> None:
        """Give up a merge; nothing of it is left. Idempotent."""
        job = self._jobs.get(diff_ids)
        if job is None or (only is not None and job is not only):
            return
        del self._jobs[diff_ids]
        _fail(job, NotFound("the image was removed while its layers were merged"))
        if job.task is not None:
            job.task.cancel()
            await asyncio.wait([job.task])

    def _job(self, diff_ids: DiffIds) -> _Job:
        job = self._jobs.get(diff_ids)
        if job is None:
            job = _Job(diff_ids, False, asyncio.get_running_loop().create_future())
            self._jobs[diff_ids] = job
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name="merge layers")
        return job

    async def _work(self) -> None:
        while self._jobs:
            # Insertion order, but for those that are waited for.
            job = min(self._jobs.values(), key=lambda one: not one.waiters)
            self._running = job
            job.task = asyncio.create_task(self._merge(job), name="merge")
            try:
                await asyncio.wait([job.task])
            finally:
                self._running = None
                job.task.cancel()
            self._settle(job, job.task)

    def _settle(self, job: _Job, task: asyncio.Task[None]) -> None:
        job.task = None
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or self._jobs.get(job.diff_ids) is not job:
            # It gave way to another, or was given up.
            return
        del self._jobs[job.diff_ids]
        if error is None:
            job.done.set_result(None)
            return
        if not job.waiters:
            log.warning("layers %s are not merged: %s", chain_id(job.diff_ids), error)
        _fail(job, error)

    async def _merge(self, job: _Job) -> None:
        chain = chain_id(job.diff_ids)
        layers = [self._store.layer_path(item) for item in job.diff_ids]
        if self._store.merged_path(job.diff_ids).exists():
            # It was given up, to give way, just as it was finished.
            await self._commit(None, job.diff_ids)
            return
        target = self._store.ingest / f"merge-{chain[7:]}-{secrets.token_hex(4)}"
        total = await in_thread(lambda: sum(path.stat().st_size for path in layers))
        await self._check_disk(total)
        watch = asyncio.create_task(self._watch(job, total, target), name="merge progress")
        try:
            await failpoint.hit("merge.start")
            await merge(layers, target, self._limits)
            await failpoint.hit("merge.written")
            await self._commit(target, job.diff_ids)
        except OSError as error:
            if full(error):
                raise squashfs.disk_full(target) from error
            raise Internal(f"merged layers cannot be stored: {error}") from error
        finally:
            watch.cancel()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)
        log.info("merged %d layers into %s", len(layers), chain)

    async def _check_disk(self, total: int) -> None:
        kept = self._limits.min_free_bytes
        if kept and await in_thread(self._store.free) < kept + total:
            raise ResourceExhausted(
                f"the disk of {self._store.folder} has no room to merge {total} bytes of layers and"
                f" keep {kept} free",
                hint="remove images, or give Thaw's root a larger disk",
            )

    async def _watch(self, job: _Job, total: int, target: Path) -> None:
        while True:
            done = 0
            with contextlib.suppress(FileNotFoundError):
                done = min(target.stat().st_size, total)
            for report in list(job.reports):
                report(done, total)
            await asyncio.sleep(_REPORT_EVERY)


async def merge(layers: Sequence[Path], target: Path, limits: Limits) -> None:
    """Write `layers`, lowest first, to `target` as one.

    Raises `ResourceExhausted` when the disk is full or the files are too many, `DataLoss` for a
    damaged layer. `target` may be left behind, in part, on failure.
    """
    nice = (process.find("nice", package="coreutils"), "-n", str(NICE))
    stream = (*nice, *squashfs.bound(), sys.executable, "-m", "images.merge_stream")
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        tool = asyncio.create_task(squashfs.sqfstar(read_end, target, before=nice), name="sqfstar")
        try:
            result = await process.run(
                *stream, "--fd", str(write_end), "--entries", str(limits.layer_entries),
                *map(str, layers), pass_fds=(write_end,), env=_environment(), cwd="/",
                timeout=None, check=False,
            )  # fmt: skip
            if result.returncode not in (0, BROKEN_PIPE):
                raise _failure(result)
        except BaseException:
            # Killed before the pipe closes: at the end of its input sqfstar would finish the file.
            tool.cancel()
            await asyncio.wait([tool])
            _ = tool.cancelled() or tool.exception()
            raise
    finally:
        os.close(write_end)
    try:
        written = await asyncio.shield(tool)
    except asyncio.CancelledError:
        tool.cancel()
        await asyncio.wait([tool])
        raise
    if written.returncode != 0 or result.returncode != 0:
        raise squashfs.failure(written, target)
    try:
        await failpoint.hit("merge.disk_full")
    except failpoint.Injected as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _fail(job: _Job, error: BaseException) -> None:
    if not job.done.done():
        job.done.set_exception(error)
        # Looked at, whether or not somebody waits.
        job.done.exception()


def _environment() -> dict[str, str]:
    armed = (failpoint.ENV, failpoint.ENV_FILE)
    return {**ENVIRONMENT, **{name: os.environ[name] for name in armed if name in os.environ}}


def _failure(result: process.Result) -> ThawError:
    try:
        return from_dict(json.loads(result.stdout))
    except ValueError:
        text = result.stderr.decode(errors="replace").strip()[-500:]
        return Internal(f"the merge of layers ended with {result.returncode}: {text}")
