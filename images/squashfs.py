"""A layer's stream made into a squashfs file: decompress, verify, rewrite, sqfstar.

The thread that rewrites writes into sqfstar's standard input; nothing but the squashfs file is ever
on the disk. Uncompressed blocks of 128 KiB start programs soonest in the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from hostlib import failpoint, process
from hostlib.errors import DataLoss, Internal, ResourceExhausted, ThawError
from images.channel import Channel
from images.decompress import Decompressed, Format
from images.layers import Plan, Replay, Rewriter
from images.model import Limits

CONVERTER: Final = 2
"""Raised with each change of what is written: a better converter never meets an old file."""
OPTIONS: Final = "raw-128k"
"""Names the options below in file names."""

_ARGV: Final = (
    # -noI leaves the id table plain too.
    "-noI", "-noD", "-noF", "-noX", "-b", "131072",
    "-mkfs-time", "0", "-root-time", "0", "-root-mode", "0755", "-root-uid", "0", "-root-gid", "0",
    "-exit-on-error", "-quiet", "-no-progress", "-processors", "1", "-mem", "128M",
)  # fmt: skip


class _Verified:
    """The uncompressed stream: hashed, and cut off at the limit."""

    def __init__(self, source: Decompressed, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._hash = hashlib.sha256()
        self._bytes = 0

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._bytes += len(data)
        if self._bytes > self._limits.layer_bytes:
            raise ResourceExhausted(
                f"the layer is a bomb: over {self._limits.layer_bytes} bytes uncompressed",
                hint="raise the limit in the configuration if the image is trusted",
            )
        self._hash.update(data)
        return data

    def check(self, diff_id: str) -> None:
        found = f"sha256:{self._hash.hexdigest()}"
        if found != diff_id:
            raise DataLoss(
                f"the layer's content is {found}, its image's configuration says {diff_id}",
                hint="the image is broken: build or push it again",
            )


def _rewrite(
    channel: Channel, sink: int, promised: Format, diff_id: str, limits: Limits, plan: Plan | None
) -> None:
    source = _Verified(Decompressed(channel, promised), limits)

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(sink, view) :]

    try:
        try:
            Rewriter(source, write, limits).run(plan)
        except Replay:
            source.check(diff_id)
            raise
        source.check(diff_id)
        failpoint.hit_sync("convert.verified")
    finally:
        os.close(sink)


def bound() -> tuple[str, ...]:
    """What to put before a command that must not outlive this process: what outlives a crash would
    write into the swept folder. Raises `FailedPrecondition`."""
    return (process.find("setpriv", package="util-linux"), "--pdeathsig", "KILL")


async def sqfstar(source: int, target: Path, *, before: tuple[str, ...] = ()) -> process.Result:
    """Make `target` of the tar that comes through the pipe `source`, which is closed here. The
    program runs behind the commands `before`. Raises `FailedPrecondition` where it is missing."""
    try:
        program = process.find("sqfstar", package="squashfs-tools")
        argv = (*before, *bound(), program, *_ARGV, str(target))
    except BaseException:
        os.close(source)
        raise
    return await process.run(*argv, stdin=source, timeout=None, check=False)


def failure(result: process.Result, target: Path) -> ThawError:
    """The user's error for an sqfstar that failed."""
    text = (result.stderr + result.stdout).decode(errors="replace").strip()[-500:]
    if os.strerror(errno.ENOSPC) in text:
        return disk_full(target)
    return Internal(f"sqfstar failed with {result.returncode}: {text}")


def disk_full(path: Path) -> ResourceExhausted:
    """The error for ENOSPC at `path`."""
    return ResourceExhausted(
        f"no space left on the disk of {path.parent}",
        hint="remove images, or give Thaw's root a larger disk",
    )


async def convert(
    channel: Channel,
    target: Path,
    *,
    promised: Format,
    diff_id: str,
    limits: Limits,
    threads: ThreadPoolExecutor,
    plan: Plan | None = None,
) -> None:
    """Write the layer that comes through `channel` to `target`.

    Raises what `Rewriter.run` does, `DataLoss` when the content is not `diff_id`,
    `ResourceExhausted` when the disk is full. `target` may be left behind, in part, on failure.
    """
    await failpoint.hit("convert.start")
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    tool = asyncio.create_task(sqfstar(read_end, target), name="sqfstar")
    loop = asyncio.get_running_loop()
    rewrite: asyncio.Future[None] = asyncio.ensure_future(
        loop.run_in_executor(threads, _rewrite, channel, write_end, promised, diff_id, limits, plan)
    )
    both: tuple[asyncio.Future[Any], ...] = (tool, rewrite)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not rewrite.done():
            # sqfstar ended first: the thread may be waiting for bytes rather than writing them.
            channel.fail(BrokenPipeError())
        try:
            await asyncio.shield(rewrite)
        except BrokenPipeError:
            raise failure(await tool, target) from None
        result = await tool
        if result.returncode != 0:
            raise failure(result, target)
    except BaseException:
        # Killed before the pipe closes: at the end of its input sqfstar would finish the file.
        tool.cancel()
        channel.fail(Internal("the conversion was given up"))
        await asyncio.wait(both)
        for task in both:
            with contextlib.suppress(asyncio.CancelledError):
                task.exception()
        raise
