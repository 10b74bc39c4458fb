"""The image service: what the daemon asks for pulls, look-ups, removal and garbage collection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path

from hostlib import failpoint
from hostlib.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ThawError,
    Unavailable,
)
from hostlib.tasks import SingleFlight, in_thread
from images import lookup, reference
from images.manifest import Manifest
from images.merging import DiffIds, Merger
from images.model import (
    Auth,
    Image,
    ImageConfig,
    Layer,
    LayerProgress,
    Limits,
    MergeMode,
    Progress,
    PullState,
    Usage,
    unique,
)
from images.pinned import Pinned
from images.pull import Puller, Tracker
from images.source import Source
from images.store import Record, Store, with_names, without_names
from images.tag_cache import TagCache

__all__ = [
    "Auth",
    "Image",
    "ImageConfig",
    "Images",
    "Layer",
    "LayerProgress",
    "Limits",
    "Progress",
    "PullState",
    "Usage",
]

log = logging.getLogger(__name__)


class Images:
    """The images of one root. Everything but `close` needs `open` first."""

    def __init__(
        self,
        root: Path,
        *,
        registry_config: Path | None,
        limits: Limits,
        merge: MergeMode = "needed",
        slots: int = 12,
        tag_life: float = 0,
        pinned: Sequence[str] = (),
    ) -> None:
        """`slots` is how many layers a pod can mount: an image with more is merged as part of its
        pull, whatever `merge` says of others. `tag_life` is how many seconds a tag's digest is good
        for pulls that do not ask anew; `pinned` are patterns of names (`Pinned`)."""
        self._store = Store(root)
        self._merge_all = merge == "auto"
        self._slots = slots
        self._merger = Merger(self._store, limits, self._commit_merged)
        self._config_path = registry_config
        self.limits = limits
        self._puller: Puller | None = None
        self._flights: SingleFlight[str] = SingleFlight()
        self._trackers: dict[object, Tracker] = {}
        self._writing = asyncio.Lock()
        self._records: dict[str, Record] = {}
        self._images: dict[str, Image] = {}
        self._removed: dict[str, Record] = {}
        self._holders: dict[str, str] = {}
        self._tags = TagCache(tag_life, root / "tags.json")
        self._pinned = Pinned(pinned)

    async def open(self) -> None:
        """Sweep what a crash left and load every image; one that is damaged is dropped, and
        comes back with its next pull."""
        await in_thread(self._tags.load)
        for record, reason in await in_thread(self._store.open):
            if reason is not None:
                log.warning("image %s is not usable: %s", record.id or "(unknown)", reason)
                if record.id:
                    await in_thread(self._store.remove, record.id)
            elif not record.names and not record.digests:
                self._removed[record.id] = record
            else:
                self._records[record.id] = record
                self._images[record.id] = await self._image(record)
        self._puller = Puller(self._store, self._config_path, self.limits)

    async def close(self) -> None:
        """Give up the pulls and merges under way and end the worker threads. Idempotent."""
        await self._merger.close()
        if self._puller is not None:
            puller, self._puller = self._puller, None
            await puller.close()

    @property
    def received_bytes(self) -> int:
        """Bytes of layers that came from registries since `open`."""
        return self._puller.received_bytes if self._puller is not None else 0

    def _pulls(self) -> Puller:
        if self._puller is None:
            raise FailedPrecondition("the image store is not open")
        return self._puller

    async def pull(
        self,
        ref: str,
        *,
        auth: Auth | None = None,
        progress: Callable[[Progress], None] | None = None,
        cached: bool = False,
        pin: bool = False,
    ) -> Image:
        """Bring an image here, or find it here; a tag is resolved anew at the registry, unless what
        it meant a moment ago (`tag_life`) will do: `cached`. `pin` pins the name (`pin`).

        Pulls of the same reference with the same credentials share one transfer. Raises
        `InvalidArgument`, `NotFound`, `Unauthenticated`, `PermissionDenied`, `Unavailable`,
        `DeadlineExceeded`, `ResourceExhausted`, `DataLoss`; the store is as before then.
        """
        puller = self._pulls()
        parsed = reference.parse(ref)
        names = () if parsed.digest else (str(parsed),)
        target = parsed.target
        if cached and names and (known := self._tags.get(names[0])) is not None:
            here = lookup.by_name(self._images, names[0])
            if here is not None and f"{parsed.name}@{known}" in here.repo_digests:
                return await self.pin(ref) if pin else here
            target = known

        async def work(tracker: Tracker) -> str:
            async with puller.registry(parsed, auth) as registry:
                try:
                    top, found = await puller.resolve(registry, target, str(parsed))
                except NotFound:
                    if target == parsed.target:
                        raise
                    # What the tag meant is gone, and the tag may mean something else by now.
                    top, found = await puller.resolve(registry, parsed.target, str(parsed))
                digest = f"{parsed.name}@{top}"
                image_id = await self._bring(puller, registry, found, names, digest, tracker)
            for name in names:
                await self._tags.put(name, top)
            return image_id

        image = await self._shared((str(parsed), target, auth), str(parsed), work, progress)
        return await self.pin(ref) if pin else image

    async def load(
        self,
        source: Source,
        target: str,
        *,
        media_type: str,
        names: Sequence[str],
        what: str,
        known: bool,
        progress: Callable[[Progress], None] | None = None,
        pin: bool = False,
    ) -> Image:
        """Bring an image here from another `source` than a registry, under `names`, all with tags.

        `target` is the digest of its manifest or index. With `known`, the same manifest is what a
        registry has under these names, and its digest becomes a name too. `pin` pins the names.
        Raises what `pull` does.
        """
        puller = self._pulls()
        parsed = [reference.parse(name) for name in names]
        if not parsed or any(each.digest or not each.tag for each in parsed):
            raise InvalidArgument("an image that is loaded needs a name and a tag")
        if not reference.is_digest(target):
            raise InvalidArgument("an image that is loaded is named by a sha256 digest")
        tags = tuple(map(str, parsed))

        async def work(tracker: Tracker) -> str:
            top, found = await puller.resolve(source, target, what, media_type=media_type)
            digest = f"{parsed[0].name}@{top}" if known else None
            image_id = await self._bring(puller, source, found, tags, digest, tracker)
            for tag in tags:
                await self._tags.forget(tag)
            return image_id

        # Nobody else has this source.
        image = await self._shared(object(), tags[0], work, progress)
        for tag in tags if pin else ():
            image = await self.pin(tag)
        return image

    async def _shared(
        self,
        key: Hashable,
        name: str,
        work: Callable[[Tracker], Awaitable[str]],
        progress: Callable[[Progress], None] | None,
    ) -> Image:
        tracker = self._trackers.get(key)
        if tracker is None or key not in self._flights:
            tracker = self._trackers[key] = Tracker(name)
        if progress is not None:
            tracker.listeners.append(progress)
        running = tracker
        try:
            image_id = await self._flights.run(key, lambda: self._guarded(work(running)))
        finally:
            if progress is not None and progress in running.listeners:
                running.listeners.remove(progress)
            if key not in self._flights and self._trackers.get(key) is running:
                del self._trackers[key]
        image = self._images.get(image_id)
        if image is None:
            raise NotFound(f"image {name} was removed while it was pulled", hint="pull it again")
        return image

    async def _guarded(self, work: Awaitable[str]) -> str:
        try:
            return await work
        except (Unavailable, DeadlineExceeded):
            # The next attempt goes on with the layers that have come.
            raise
        except OSError as error:
            puller = self._pulls()
            await self._forget_layers(puller)
            raise puller.disk_error(error) from error
        except ThawError:
            await self._forget_layers(self._pulls())
            raise

    async def _bring(
        self,
        puller: Puller,
        source: Source,
        found: Manifest,
        names: tuple[str, ...],
        digest: str | None,
        tracker: Tracker,
    ) -> str:
        """The image of a manifest, with these names; its id."""
        image_id = found.config.digest
        here = self._records.get(image_id) or self._removed.get(image_id)
        if here is not None and len(here.diff_ids) == len(found.layers):
            data, config, diff_ids = None, here.config, here.diff_ids
        else:
            data, config, diff_ids = await puller.config(source, found)
        async with puller.want(diff_ids):
            await puller.layers(source, found, diff_ids, tracker)
            if self._too_many(diff_ids):
                await self._merger.now(diff_ids, tracker.merging)
            await failpoint.hit("pull.record")
            size = len(data) if data is not None else found.config.size
            fresh = Record(image_id, (), (), diff_ids, config, size)
            await self._record(fresh, names, digest, data)
            self._merge_later(diff_ids)
        if not set(self._removed) <= set(self._holders.values()):
            await self.collect()
        return image_id

    async def _forget_layers(self, puller: Puller) -> None:
        """After a pull that will not work the next time either, or has filled the disk."""
        await puller.settle()
        if self._puller is not None:
            await self.collect()

    async def _record(
        self, fresh: Record, names: tuple[str, ...], digest: str | None, data: bytes | None
    ) -> None:
        async with self._writing:
            known = self._records.get(fresh.id) or self._removed.get(fresh.id)
            if known is None and data is None:
                raise NotFound(
                    "the image was removed while it was pulled again", hint="pull it again"
                )
            record = with_names(known or fresh, names, digest)
            others = [one for one in self._records.values() if one.id != record.id]
            pins = {*record.pins, *(pin for one in others for pin in one.pins if pin in names)}
            record = replace(record, pins=tuple(sorted(pins)))
            # Another image that has a tag loses it: after this one has it, so that a crash
            # between leaves two, of which the newer pull's is corrected by the next.
            if record != known:
                blobs = {} if data is None else {record.id: data}
                await in_thread(self._store.write, record, blobs)
            image = await self._image(record)
            self._removed.pop(record.id, None)
            self._records[record.id], self._images[record.id] = record, image
            for other in others:
                if not set(names).isdisjoint(other.names):
                    await self._change(without_names(other, names))

    # --- merged layers

    def _too_many(self, diff_ids: DiffIds) -> bool:
        return len(unique(diff_ids)) > self._slots

    def _merge_later(self, diff_ids: DiffIds) -> None:
        if self._too_many(diff_ids) or (self._merge_all and len(unique(diff_ids)) > 1):
            self._merger.later(diff_ids)

    def merge_rest(self) -> None:
        """Begin to merge, in the background, the images that are here and not merged yet."""
        for record in self._records.values():
            self._merge_later(record.diff_ids)

    async def merge(self, image_id: str) -> Image:
        """The image with its layers merged; returns when they are.

        Raises `NotFound`, and what `Merger.now` does.
        """
        record = self._records.get(image_id)
        if record is None:
            raise NotFound(f"no image {image_id}", hint="pull it again")
        await self._merger.now(record.diff_ids)
        image = self._images.get(image_id)
        if image is None:
            raise NotFound(f"image {image_id} was removed while its layers were merged")
        return image

    async def runnable(self, image: Image) -> Image:
        """The image as a pod can mount it: merged first where its layers are too many."""
        return await self.merge(image.id) if len(image.mounts) > self._slots else image

    async def _commit_merged(self, temporary: Path | None, diff_ids: DiffIds) -> None:
        async with self._writing:
            if temporary is not None:
                await in_thread(self._store.commit_merged, temporary, diff_ids)
            for record in self._records.values():
                if record.diff_ids == diff_ids:
                    self._images[record.id] = await self._image(record)

    def _unused(self, diff_ids: DiffIds) -> bool:
        wanted = self._puller is not None and diff_ids in self._puller.wanted
        return not wanted and all(one.diff_ids != diff_ids for one in self._records.values())

    async def _change(self, record: Record) -> None:
        await in_thread(self._store.update, record)
        if record.names or record.digests:
            self._records[record.id] = record
            self._images[record.id] = await self._image(record)
        else:
            # Nothing names it any more: for a restart, too, it is no image.
            del self._records[record.id], self._images[record.id]
            self._removed[record.id] = record

    async def _image(self, record: Record) -> Image:
        image = await in_thread(self._store.image, record)
        pinned = image.pinned or self._pinned((*image.repo_tags, *image.repo_digests))
        return replace(image, pinned=pinned)

    def pulling(self) -> list[PullState]:
        """The pulls under way, oldest first."""
        return sorted((item.state for item in self._trackers.values()), key=lambda s: s.started)

    def get(self, ref_or_id: str) -> Image | None:
        """The image of a name, a name with digest, an id, or a unique prefix (3 digits at least) of
        an id. Raises `InvalidArgument` when it is malformed or the prefix is not unique."""
        return lookup.find(self._images, ref_or_id)

    def list(self) -> list[Image]:
        """Every image, by id."""
        return [self._images[key] for key in sorted(self._images)]

    async def remove(self, ref_or_id: str) -> None:
        """Remove an image with all its names, and the layers that nobody uses. Idempotent."""
        async with self._writing:
            image = self.get(ref_or_id)
            if image is None:
                return
            record = self._records[image.id]
            if image.id in self._holders.values():
                # Without names it is no image any more, but a restart still knows its layers.
                record = replace(record, names=(), digests=(), pins=())
                await in_thread(self._store.update, record)
                self._removed[image.id] = record
            else:
                await in_thread(self._store.remove, image.id)
            del self._records[image.id], self._images[image.id]
        if self._unused(record.diff_ids):
            await self._merger.cancel(record.diff_ids)
        await self.collect()

    async def pin(self, ref_or_id: str, pinned: bool = True) -> Image:
        """Have the kubelet's garbage collection told to spare the image, or no longer so.

        What is pinned is a name, or all of an image's where it is told by its id: the pin goes
        with the name to whatever is pulled under it next, and ends with the image's removal.
        Raises `NotFound`.
        """
        async with self._writing:
            image = self.get(ref_or_id)
            if image is None:
                raise NotFound(f"no image {ref_or_id}", hint="see thaw images")
            record = self._records[image.id]
            meant = lookup.names_meant(image, ref_or_id)
            pins = {*record.pins, *meant} if pinned else set(record.pins).difference(meant)
            if pins != set(record.pins):
                await self._change(replace(record, pins=tuple(sorted(pins))))
            return self._images[image.id]

    def hold(self, image_id: str, holder: str) -> None:
        """Keep an image's layers for the container `holder`, also beyond the image's removal.

        Raises `NotFound`. Idempotent; a daemon that starts calls it for each container before
        the first `collect`.
        """
        if image_id not in self._records and image_id not in self._removed:
            raise NotFound(f"no image {image_id}", hint="pull it again")
        self._holders[holder] = image_id

    def release(self, holder: str) -> None:
        """The container is gone. Idempotent."""
        self._holders.pop(holder, None)

    async def collect(self) -> int:
        """Remove every layer that no image, no container and no pull uses; the bytes freed."""
        puller = self._pulls()
        async with self._writing:
            for image_id in list(self._removed):
                if image_id not in self._holders.values():
                    await in_thread(self._store.remove, image_id)
                    del self._removed[image_id]
        async with puller.presence, self._writing:
            kept = [*self._records.values(), *self._removed.values()]
            images = {record.diff_ids for record in kept} | set(puller.wanted)
            paths = {self._store.layer_path(item) for diff_ids in images for item in diff_ids}
            paths |= {self._store.merged_path(diff_ids) for diff_ids in images}
            blobs = {record.id for record in kept}
            return await in_thread(self._store.collect, paths, blobs)

    async def usage(self) -> Usage:
        """What the store takes up on disk."""
        return await in_thread(self._store.usage)
