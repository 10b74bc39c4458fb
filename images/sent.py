"""Content that a client sends, blob by blob, as it is asked for it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Callable

from hostlib import failpoint
from hostlib.errors import DataLoss, ResourceExhausted
from images.manifest import Descriptor
from images.model import Limits
from images.source import Sink

Ask = Callable[[str], AsyncGenerator[bytes, None]]
"""The blob of a digest, in pieces. Raises `NotFound` where there is none, `Unavailable` when who
sends goes away, `DeadlineExceeded` when nothing comes."""


class Sent:
    """A `Source`: every byte is checked against the digest that it was asked by."""

    def __init__(self, ask: Ask, limits: Limits) -> None:
        self._ask = ask
        self._limits = limits

    async def manifest(self, target: str) -> tuple[bytes, str]:
        data = bytearray()
        async with contextlib.aclosing(self._ask(target)) as chunks:
            async for chunk in chunks:
                data += chunk
                if len(data) > self._limits.manifest_bytes:
                    raise ResourceExhausted(
                        f"manifest {target} is larger than {self._limits.manifest_bytes} bytes"
                    )
        _check(target, hashlib.sha256(data).hexdigest())
        return bytes(data), ""

    async def small_blob(self, descriptor: Descriptor) -> bytes:
        parts: list[bytes] = []

        async def sink(data: bytes) -> None:
            parts.append(data)

        await self.blob(descriptor, sink)
        return b"".join(parts)

    async def blob(self, descriptor: Descriptor, sink: Sink) -> None:
        found, done = hashlib.sha256(), 0
        async with contextlib.aclosing(self._ask(descriptor.digest)) as chunks:
            async for chunk in chunks:
                await failpoint.hit("pull.chunk")
                done += len(chunk)
                if done > descriptor.size:
                    raise DataLoss(
                        f"blob {descriptor.digest} is larger than the {descriptor.size} bytes that "
                        "its manifest says",
                        hint="the image is broken: make it again",
                    )
                found.update(chunk)
                await sink(chunk)
        if done < descriptor.size:
            raise DataLoss(
                f"blob {descriptor.digest} ends after {done} of {descriptor.size} bytes",
                hint="the image is broken: make it again",
            )
        _check(descriptor.digest, found.hexdigest())


def _check(digest: str, found: str) -> None:
    if digest != f"sha256:{found}":
        raise DataLoss(
            f"blob {digest} is sha256:{found}", hint="the image is broken: make it again"
        )
