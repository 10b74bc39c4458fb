"""Thaw's own RPCs about images: pulls and loads with progress, the pulls under way, pins."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Final

import grpc.aio

from cri.api import thaw_pb2 as api
from cri.daemon import Daemon
from cri.service.image_pull import credentials
from cri.service.progress import MAX_QUEUE, with_progress
from hostlib.errors import DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from images.model import Image, LayerProgress, Progress
from images.sent import Sent

MAX_PIECE: Final = 1024 * 1024
MAX_NAMES: Final = 64


class _Told:
    """Progress as messages: one for each layer that moved, not for each layer each time."""

    def __init__(self) -> None:
        self._told: dict[str, LayerProgress] = {}

    def messages(self, item: Progress | tuple[Image]) -> list[api.PullProgress]:
        if isinstance(item, tuple):
            return [api.PullProgress(phase="done", image_ref=item[0].id)]
        moved = [each for each in item.layers if self._told.get(each.digest) != each]
        self._told |= {each.digest: each for each in moved}
        return _progress(item, moved)


def _progress(item: Progress, layers: list[LayerProgress]) -> list[api.PullProgress]:
    found = [
        api.PullProgress(layer=each.digest, phase=each.state, current=each.done, total=each.total)
        for each in layers
    ]
    if item.merging is not None:
        done, total = item.merging
        found.insert(0, api.PullProgress(phase="merging", current=done, total=total))
    return found


async def pull(daemon: Daemon, request: api.PullRequest) -> AsyncIterator[api.PullProgress]:
    if not request.image:
        raise InvalidArgument("no image given")
    auth = credentials(request)

    def work(report: Callable[[Progress], None]) -> Coroutine[Any, Any, Image]:
        return daemon.images.pull(
            request.image,
            auth=auth,
            progress=report,
            cached=not request.refresh,
            pin=request.pin,
        )

    told = _Told()
    async for item in with_progress(work):
        for message in told.messages(item):
            yield message


async def unpin(daemon: Daemon, request: api.UnpinRequest) -> api.UnpinResponse:
    if not request.image:
        raise InvalidArgument("no image given")
    found = await daemon.images.pin(request.image, pinned=False)
    return api.UnpinResponse(pinned=found.pinned)


async def pulls(daemon: Daemon, request: api.PullsRequest) -> api.PullsResponse:
    del request
    return api.PullsResponse(
        pulls=[
            api.PullUnderWay(
                image=each.ref,
                started_at=int(each.started * 1e9),
                progress=_progress(each.progress, list(each.progress.layers)),
            )
            for each in daemon.images.pulling()
        ]
    )


class _Conversation:
    """Asks the client of a Load for blobs, one at a time."""

    def __init__(
        self,
        requests: AsyncIterator[api.LoadRequest],
        want: Callable[[str], Awaitable[None]],
        source: str,
        patience: float,
    ) -> None:
        self._requests = requests
        self._want = want
        self._source = source
        self._patience = patience
        self._turn = asyncio.Lock()
        self._over = False

    async def ask(self, digest: str) -> AsyncGenerator[bytes, None]:
        # The turn of a blob that does not come whole does not end: what the client sends next would
        # belong to it. Its failure is that of the load, whose other layers wait until then.
        await self._turn.acquire()
        if self._over:
            self._turn.release()
            raise Unavailable(f"the load from {self._source} was given up")
        await self._want(digest)
        async with contextlib.aclosing(self._pieces(digest)) as pieces:
            async for piece in pieces:
                yield piece
        self._turn.release()

    def close(self) -> None:
        """The load has ended. A layer that another pull wants as well comes from there, then."""
        self._over = True
        if self._turn.locked():
            self._turn.release()

    async def _pieces(self, digest: str) -> AsyncGenerator[bytes, None]:
        while True:
            message = await self._next()
            if message.WhichOneof("part") != "data":
                raise InvalidArgument("a client that loads an image must send what it is asked for")
            if message.data.error:
                raise NotFound(f"{self._source}: {message.data.error[:1000]}")
            if len(message.data.data) > MAX_PIECE:
                raise InvalidArgument(f"a piece of blob {digest} is over {MAX_PIECE} bytes")
            if message.data.data:
                yield message.data.data
            if message.data.last:
                return

    async def _next(self) -> api.LoadRequest:
        try:
            async with asyncio.timeout(self._patience):
                return await anext(self._requests)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._over and task is not None and task.cancelling():
                raise
            # Not this task was cancelled, but the client's call.
            raise self._gone() from None
        except (StopAsyncIteration, asyncio.InvalidStateError, grpc.aio.UsageError):
            raise self._gone() from None
        except TimeoutError:
            raise DeadlineExceeded(
                f"the client that loads {self._source} sent nothing for {self._patience:g} s"
            ) from None

    def _gone(self) -> Unavailable:
        return Unavailable(f"the client that loads {self._source} went away")


async def load(
    daemon: Daemon, requests: AsyncIterator[api.LoadRequest]
) -> AsyncIterator[api.LoadResponse]:
    """An image that the client has. Nothing that it sends is kept but what every pull keeps."""
    limits = daemon.images.limits
    try:
        first = await anext(requests)
    except StopAsyncIteration:
        raise InvalidArgument("a load begins with what is loaded") from None
    start = first.start
    if first.WhichOneof("part") != "start" or not 0 < len(start.names) <= MAX_NAMES:
        raise InvalidArgument(f"a load begins with what is loaded, under 1 to {MAX_NAMES} names")
    source = start.source[:200] or start.names[0]
    told_of: asyncio.Queue[Progress | str] = asyncio.Queue(MAX_QUEUE)
    conversation = _Conversation(requests, told_of.put, source, limits.stall_timeout)

    def work(report: Callable[[Progress | str], None]) -> Coroutine[Any, Any, Image]:
        return daemon.images.load(
            Sent(conversation.ask, limits),
            start.digest,
            media_type=start.media_type[:255],
            names=start.names,
            what=source,
            known=start.registry_digest,
            progress=report,
            pin=start.pin,
        )

    told = _Told()
    try:
        async for item in with_progress(work, told_of):
            if isinstance(item, str):
                yield api.LoadResponse(wanted=item)
                continue
            for message in told.messages(item):
                yield api.LoadResponse(progress=message)
    finally:
        conversation.close()
