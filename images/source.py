"""Where an image's content comes from; what is read there is trusted in nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from images.manifest import Descriptor

Sink = Callable[[bytes], Awaitable[None]]


class Source(Protocol):
    """Content by digest: a repository of a registry, or what a client sends."""

    async def manifest(self, target: str) -> tuple[bytes, str]:
        """The manifest or index behind a tag or digest: its bytes, within
        `Limits.manifest_bytes`, and its content type ("" where unknown).

        Raises `NotFound`, and `DataLoss` for bytes of another digest.
        """
        ...

    async def small_blob(self, descriptor: Descriptor) -> bytes:
        """A blob that fits in memory: the caller has judged its size."""
        ...

    async def blob(self, descriptor: Descriptor, sink: Sink) -> None:
        """Send a blob's bytes to `sink`, each once and in order.

        Raises `NotFound`, `Unavailable`, and `DataLoss` when size or digest are not the
        descriptor's, known only after `sink` had the last byte.
        """
        ...
