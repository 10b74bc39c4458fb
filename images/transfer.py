"""One blob on its way: checked against its descriptor, resumed where it breaks off."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from typing import Final

import httpx

from hostlib import failpoint
from hostlib.errors import DataLoss, Unavailable
from images.answers import Transient
from images.manifest import Descriptor
from images.source import Sink

ATTEMPTS: Final = 5
BACKOFF: Final = 0.25
"""Seconds before the second attempt; doubled for each one after it."""


class SinkFailed(Exception):
    """Who takes the bytes failed: no other host, and no second attempt, can help."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Resume(Exception):
    """A transfer broke off after some bytes."""


class Transfer:
    """One blob on its way, over as many requests as it takes."""

    def __init__(self, descriptor: Descriptor, sink: Sink) -> None:
        self._descriptor = descriptor
        self._sink = sink
        self._hash = hashlib.sha256()
        self.done = 0

    async def receive(self, response: httpx.Response, netloc: str) -> None:
        """Take in one answer. Raises `Transient` when it ends too early."""
        digest, size = self._descriptor.digest, self._descriptor.size
        skip = self.done
        if response.status_code == 206:
            start = response.headers.get("Content-Range", "").removeprefix("bytes ")
            if not start.startswith(f"{self.done}-"):
                raise DataLoss(f"{netloc} resumed blob {digest} at the wrong place")
            skip = 0
        async for chunk in response.aiter_raw():
            data = chunk
            if skip:
                data, skip = data[skip:], skip - min(skip, len(data))
            if not data:
                continue
            if self.done + len(data) > size:
                raise DataLoss(
                    f"{netloc} sends more than the {size} bytes of blob {digest}",
                    hint="the image is broken, or the registry is: push it again",
                )
            await failpoint.hit("pull.chunk")
            # httpcore reads at most 64 KiB at a time: hashed within 0.2 ms.
            self._hash.update(data)
            self.done += len(data)
            try:
                await self._sink(data)
            except Exception as error:
                raise SinkFailed(error) from error
        if self.done < size:
            raise Transient(
                Unavailable(
                    f"{netloc} ended blob {digest} after {self.done} of {size} bytes",
                    hint="the registry or the network is unreliable: try again",
                )
            )

    def check(self) -> None:
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._descriptor.digest:
            raise DataLoss(
                f"blob {self._descriptor.digest} arrived as {found}",
                hint="the registry's copy is damaged: push the image again",
            )


async def retried(
    work: Callable[[], Awaitable[bytes]], progress: Callable[[], int] | None = None
) -> bytes:
    """`work`, tried again on transient failures; attempts count anew (`Resume`) after progress."""
    for attempt in range(1, ATTEMPTS + 1):
        before = progress() if progress else 0
        try:
            return await work()
        except Transient as failure:
            if progress and progress() > before:
                raise Resume from failure
            if attempt == ATTEMPTS:
                raise failure.error from failure
            wait = BACKOFF * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)
            await asyncio.sleep(max(wait, failure.wait or 0))
    raise AssertionError("unreachable")
