"""The one place where an outcome becomes a gRPC status and a line of the log.

A call that changes something is shielded: when its client goes away it is carried to its end,
since the kubelet comes back with the same names and must find it done, not half done. Calls that
only read end with their client.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from cri.validation import check
from hostlib.errors import Internal, ThawError
from hostlib.tasks import Tasks

log = logging.getLogger("cri.calls")

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

Handler = Callable[[Q], Awaitable[R]]

Observe = Callable[[str, float, str], None]
"""Told of each call that ended: its name, the seconds it took, its status unless that is OK."""

# The kubelet and crictl ask these every second.
QUIET: Final = frozenset(
    {
        "Version",
        "Status",
        "RuntimeConfig",
        "ListPodSandbox",
        "ListContainers",
        "ListImages",
        "PodSandboxStatus",
        "ContainerStatus",
        "ImageStatus",
        "ImageFsInfo",
        "ContainerStats",
        "ListContainerStats",
        "PodSandboxStats",
        "ListPodSandboxStats",
        "ListMetricDescriptors",
        "ListPodSandboxMetrics",
        "Pool",
        "Pulls",
        "Trace",
    }
)


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The code and the text that a client gets for `error`."""
    if isinstance(error, ThawError):
        code = getattr(grpc.StatusCode, error.code, grpc.StatusCode.INTERNAL)
        return code, str(error)
    return grpc.StatusCode.INTERNAL, f"internal error: {type(error).__name__}: {error}"


class Boundary:
    """Runs handlers; owns those that outlive their client."""

    def __init__(self, observe: Observe = lambda _name, _seconds, _failure: None) -> None:
        self._tasks = Tasks()
        self._observe = observe

    def unary(self, name: str, handler: Handler[Q, R]) -> Callable[[Q, Any], Awaitable[R]]:
        """`handler` as a gRPC method."""
        reading = name in QUIET

        async def call(request: Q, context: grpc.aio.ServicerContext[Q, R]) -> R:
            started = time.monotonic()
            try:
                check(request)
                if reading:
                    response = await handler(request)
                else:
                    response = await self._shielded(name, handler, request)
            except asyncio.CancelledError:
                log.info("%s: the client went away", name)
                if reading:
                    self._observe(name, time.monotonic() - started, "CANCELLED")
                raise
            except Exception as error:  # the boundary: everything becomes a status here
                code, text = self._failed(name, error, started)
                await context.abort(code, text)
                raise
            seconds = time.monotonic() - started
            self._observe(name, seconds, "")
            level = logging.DEBUG if reading else logging.INFO
            log.log(level, "%s: ok, %.0f ms", name, seconds * 1000)
            return response

        return call

    async def stream(
        self,
        name: str,
        handler: Callable[[Any], AsyncIterator[R]],
        request: Any,
        context: grpc.aio.ServicerContext[Q, R],
    ) -> AsyncIterator[R]:
        """The items of a handler that streams; it ends with its reader. The request may be a stream
        itself."""
        started = time.monotonic()
        try:
            if isinstance(request, Message):
                check(request)
            async for item in handler(request):
                yield item
        except Exception as error:  # the boundary: everything becomes a status here
            code, text = self._failed(name, error, started)
            await context.abort(code, text)
            raise
        seconds = time.monotonic() - started
        self._observe(name, seconds, "")
        level = logging.DEBUG if name.startswith("Stream") else logging.INFO
        log.log(level, "%s: ok, %.0f ms", name, seconds * 1000)

    def pushed(
        self, name: str, handler: Callable[[Q, Callable[[R], Awaitable[None]]], Awaitable[None]]
    ) -> Callable[[Q, Any], Awaitable[None]]:
        """A handler that writes its items itself, as a gRPC method; it ends with its reader."""

        async def call(request: Q, context: Any) -> None:
            started = time.monotonic()
            try:
                await handler(request, context.write)
            except Exception as error:  # the boundary: everything becomes a status here
                code, text = self._failed(name, error, started)
                # Waits until a client that did not read reads, or is gone.
                await context.abort(code, text)

        return call

    async def _shielded(self, name: str, handler: Handler[Q, R], request: Q) -> R:
        async def carry() -> R:
            return await handler(request)

        task = asyncio.create_task(carry(), name=name)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                self._tasks.start(self._outlive(name, task), f"{name} without its client")
            raise

    async def _outlive(self, name: str, task: asyncio.Task[Any]) -> None:
        started = time.monotonic()
        try:
            await task
        except Exception as error:  # the boundary: nobody else hears of it
            self._failed(name, error, started, " (client gone)")
        else:
            self._observe(name, time.monotonic() - started, "")
            log.info("%s (client gone): ok", name)

    def _failed(
        self, name: str, error: BaseException, started: float, how: str = ""
    ) -> tuple[grpc.StatusCode, str]:
        code, text = status_of(error)
        self._observe(name, time.monotonic() - started, code.name)
        known = isinstance(error, ThawError) and type(error) is not Internal
        log.log(
            logging.DEBUG if name in QUIET and known else logging.WARNING,
            "%s%s: %s: %s (%.0f ms)",
            name,
            how,
            code.name,
            text,
            (time.monotonic() - started) * 1000,
            exc_info=None if known or isinstance(error, ThawError) else error,
        )
        return code, text

    async def drain(self, timeout: float) -> None:
        """Wait for calls whose client went away, `timeout` seconds at most; then end them."""
        await self._tasks.wait(timeout)
        await self._tasks.close()
