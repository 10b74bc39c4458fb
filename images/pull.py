"""Pulling an image: manifest, configuration, then its layers side by side into the store."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hostlib import failpoint
from hostlib.errors import DataLoss, Internal, NotFound, ResourceExhausted, ThawError
from hostlib.tasks import SingleFlight, in_thread
from images import decompress, manifest, squashfs
from images.channel import Channel
from images.layers import Plan, Replay
from images.manifest import Descriptor, Manifest
from images.model import (
    Auth,
    ImageConfig,
    LayerProgress,
    LayerState,
    Limits,
    Progress,
    PullState,
)
from images.reference import Reference
from images.registry import Registry
from images.source import Source
from images.store import Store, full

log = logging.getLogger(__name__)

_REPORT_EVERY: Final = 256 * 1024
_CHECK_DISK_EVERY: Final = 64 * 1024 * 1024
_MAX_INDEXES: Final = 3
"""How deep indexes may name indexes."""

Listener = Callable[[Progress], None]


@dataclass(frozen=True)
class Pulled:
    """What a pull brought; every layer of ``diff_ids`` is in the store."""

    id: str
    manifest_digest: str
    config: ImageConfig
    config_data: bytes
    diff_ids: tuple[str, ...]


def _read_manifest(
    data: bytes, what: str, content_type: str, arch: str, limits: Limits
) -> Manifest | Descriptor:
    """An image's manifest, or which one an index has for this platform. Blocking: megabytes of
    JSON take a while."""
    body = manifest.load(data, f"the manifest of {what}")
    if manifest.media_type(body, content_type) in manifest.MANIFESTS:
        return manifest.manifest(body, limits)
    return manifest.choose(body, arch)


class Tracker:
    """One pull under way and who wants to hear of it."""

    def __init__(self, ref: str) -> None:
        self.state = PullState(ref, time.time(), Progress(ref))
        self.listeners: list[Listener] = []

    def layers(self, descriptors: tuple[Descriptor, ...]) -> None:
        waiting = tuple(LayerProgress(item.digest, 0, item.size, "waiting") for item in descriptors)
        self._set(layers=waiting)

    def update(self, index: int, done: int, state: LayerState) -> None:
        layers = list(self.state.progress.layers)
        layers[index] = replace(layers[index], done=done, state=state)
        self._set(layers=tuple(layers))

    def merging(self, done: int, total: int) -> None:
        self._set(merging=(done, total))

    def _set(self, **changes: Any) -> None:
        progress = replace(self.state.progress, **changes)
        self.state = replace(self.state, progress=progress)
        for listener in list(self.listeners):
            try:
                listener(progress)
            except Exception:
                log.exception("a listener to the pull of %s failed", self.state.ref)


class Puller:
    """Fetches images into a `Store`. Layers are fetched once however many pulls want them."""

    def __init__(self, store: Store, config_path: Path | None, limits: Limits) -> None:
        self.received_bytes = 0
        """Of layers, from registries, as they came."""
        self._store = store
        self._config_path = config_path
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.parallel_layers)
        self._threads = ThreadPoolExecutor(limits.parallel_layers, "convert")
        self._flights: SingleFlight[None] = SingleFlight()
        self._watchers: dict[str, list[Callable[[int], None]]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.presence = asyncio.Lock()
        """Held while layers are found present, and while others are removed."""
        self.wanted: Counter[tuple[str, ...]] = Counter()
        """How many pulls rely on layers that no record names yet, and on what they merge into."""

    async def close(self) -> None:
        """Give up the layers under way and end the worker threads."""
        while tasks := list(self._running):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await in_thread(self._threads.shutdown)

    async def settle(self) -> None:
        """Wait until layers that were given up are gone, or in the store after all."""
        if tasks := [task for task in self._running if task.cancelling()]:
            await asyncio.wait(tasks)

    @contextlib.asynccontextmanager
    async def want(self, diff_ids: tuple[str, ...]) -> AsyncIterator[None]:
        """Keep these layers from garbage collection."""
        async with self.presence:
            self.wanted[diff_ids] += 1
        try:
            yield
        finally:
            self.wanted[diff_ids] -= 1
            if not self.wanted[diff_ids]:
                del self.wanted[diff_ids]

    def registry(self, ref: Reference, auth: Auth | None) -> Registry:
        """The client for `ref`'s repository."""
        return Registry(ref, config_path=self._config_path, auth=auth, limits=self._limits)

    async def resolve(
        self, source: Source, target: str, what: str, *, media_type: str = ""
    ) -> tuple[str, Manifest]:
        """The digest that `target`, a tag or a digest, means now, and this platform's manifest
        behind it. `media_type` is what to take it for where the source does not say."""
        arch = manifest.architecture()
        top, size = "", None
        for _ in range(_MAX_INDEXES):
            await failpoint.hit("pull.resolve")
            data, content_type = await source.manifest(target)
            top = top or f"sha256:{hashlib.sha256(data).hexdigest()}"
            if size is not None and size != len(data):
                raise DataLoss(
                    f"the index of {what} says that {target} has {size} bytes, it has {len(data)}"
                )
            found = await in_thread(
                _read_manifest, data, what, content_type or media_type, arch, self._limits
            )
            if isinstance(found, Manifest):
                return top, found
            target, size, media_type = found.digest, found.size, found.media_type
        raise DataLoss(f"the index of {what} names indexes without end")

    async def config(
        self, source: Source, found: Manifest
    ) -> tuple[bytes, ImageConfig, tuple[str, ...]]:
        """The image's configuration, checked against the manifest and this platform."""
        await failpoint.hit("pull.config")
        data = await source.small_blob(found.config)
        config, diff_ids = await in_thread(manifest.image_config, data)
        if len(diff_ids) != len(found.layers):
            raise DataLoss(
                f"the manifest has {len(found.layers)} layers, the configuration {len(diff_ids)}",
                hint="the image is broken: build or push it again",
            )
        arch = manifest.architecture()
        if config.architecture not in ("", arch) or config.os not in ("", "linux"):
            raise NotFound(
                f"the image is for {config.os}/{config.architecture}, this node is linux/{arch}",
                hint="build the image for this platform",
            )
        return data, config, diff_ids

    async def layers(
        self, source: Source, found: Manifest, diff_ids: tuple[str, ...], tracker: Tracker
    ) -> None:
        """Bring every layer into the store; the first failure ends the others."""
        tracker.layers(found.layers)
        try:
            async with asyncio.TaskGroup() as group:
                for index, (descriptor, diff_id) in enumerate(
                    zip(found.layers, diff_ids, strict=True)
                ):
                    group.create_task(self._watch(source, descriptor, diff_id, tracker, index))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _watch(
        self,
        source: Source,
        descriptor: Descriptor,
        diff_id: str,
        tracker: Tracker,
        index: int,
    ) -> None:
        if self._store.layer_path(diff_id).exists():
            tracker.update(index, descriptor.size, "present")
            return
        watchers = self._watchers.setdefault(diff_id, [])

        def watch(done: int) -> None:
            tracker.update(index, min(done, descriptor.size), "downloading")

        watchers.append(watch)
        try:
            await self._fetch(source, descriptor, diff_id)
        finally:
            watchers.remove(watch)
            if not watchers:
                self._watchers.pop(diff_id, None)
        tracker.update(index, descriptor.size, "done")

    async def _fetch(self, source: Source, descriptor: Descriptor, diff_id: str) -> None:
        """The layer, by another pull that is at it, else by this one: also where that one's source,
        or its credentials, failed it."""
        own = False

        async def layer() -> None:
            nonlocal own
            own = True
            await self._layer(source, descriptor, diff_id)

        while True:
            try:
                return await self._flights.run(diff_id, layer)
            except ThawError:
                if own:
                    raise

    async def _layer(self, source: Source, descriptor: Descriptor, diff_id: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        promised = decompress.expected(descriptor.media_type)
        async with self._slots:
            if self._store.layer_path(diff_id).exists():
                return
            plan: Plan | None = None
            for _ in range(2):
                temporary = self._store.ingest / f"{diff_id[7:]}-{secrets.token_hex(4)}"
                try:
                    await self._stream(source, descriptor, diff_id, temporary, promised, plan)
                    await failpoint.hit("pull.commit")
                    await in_thread(self._store.commit_layer, temporary, diff_id)
                    return
                except Replay as replay:
                    log.info("layer %s names files twice: reading it again", descriptor.digest)
                    plan = replay.plan
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(temporary)
            raise Internal(f"layer {descriptor.digest} needs a second plan")

    async def _stream(
        self,
        source: Source,
        descriptor: Descriptor,
        diff_id: str,
        temporary: Path,
        promised: decompress.Format,
        plan: Plan | None,
    ) -> None:
        channel = Channel()
        download = asyncio.create_task(
            self._download(source, descriptor, diff_id, channel), name="download"
        )
        try:
            await squashfs.convert(
                channel, temporary, promised=promised, diff_id=diff_id, limits=self._limits,
                threads=self._threads, plan=plan,
            )  # fmt: skip
            await download
        finally:
            download.cancel()
            await asyncio.wait([download])
            if not download.cancelled():
                download.exception()

    async def _download(
        self, source: Source, descriptor: Descriptor, diff_id: str, channel: Channel
    ) -> None:
        done = reported = 0
        checked = -_CHECK_DISK_EVERY

        async def sink(data: bytes) -> None:
            nonlocal done, reported, checked
            if done - checked >= _CHECK_DISK_EVERY:
                checked = done
                await self._check_disk()
            try:
                await failpoint.hit("pull.disk_full")
            except failpoint.Injected as error:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            await channel.put(data)
            done += len(data)
            self.received_bytes += len(data)
            if done - reported >= _REPORT_EVERY or done == descriptor.size:
                reported = done
                for watch in list(self._watchers.get(diff_id, ())):
                    watch(done)

        try:
            await source.blob(descriptor, sink)
        except asyncio.CancelledError:
            channel.fail(Internal("the download was given up"))
            raise
        except Exception as error:
            channel.fail(error)
            raise
        channel.end()

    async def _check_disk(self) -> None:
        wanted = self._limits.min_free_bytes
        if wanted and await in_thread(self._store.free) < wanted:
            raise ResourceExhausted(
                f"the disk of {self._store.folder} has less than {wanted} bytes free",
                hint="remove images, or give Thaw's root a larger disk",
            )

    def disk_error(self, error: OSError) -> ResourceExhausted | Internal:
        """The user's error for a failure to write the store."""
        if full(error):
            return squashfs.disk_full(self._store.ingest)
        return Internal(f"the image store cannot be written: {error}")
