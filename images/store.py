"""Images on disk, under ``root/images``.

::

    blobs/<digest>                      manifests and configurations, by sha256
    layers/<diff_id>-<version>-<options>.squashfs
    merged/<chain id>-<version>-<options>.squashfs
    records/<config digest>.json        one per image: names, digests, layers
    ingest/                             what is being written; emptied at start

The record is written last, durably, and removed first: a crash at any point leaves an image whole
or not there, and layers that nobody names, which `collect` removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hostlib import failpoint, records
from hostlib.errors import DataLoss, ThawError
from images import manifest, squashfs
from images.model import Image, ImageConfig, Layer, Usage

KIND: Final = "image"
VERSION: Final = 1
MERGER: Final = 1
"""Raised with each change of what a merge writes."""


@dataclass(frozen=True)
class Record:
    """An image as the disk knows it."""

    id: str
    names: tuple[str, ...]
    """``domain/path:tag``, sorted."""
    digests: tuple[str, ...]
    """``domain/path@sha256:...``, sorted."""
    diff_ids: tuple[str, ...]
    config: ImageConfig
    config_bytes: int
    pins: tuple[str, ...] = ()
    """Those of the names and digests that are pinned, sorted."""


def chain_id(diff_ids: tuple[str, ...]) -> str:
    """What names layers applied one upon the other (OCI image specification, "Layer ChainID")."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}"
    return chain


def full(error: OSError) -> bool:
    """Whether the disk, or the owner's part of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class Store:
    """The files; every method blocks and runs in a thread, except the pure path functions."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "images"
        self._blobs = self.folder / "blobs"
        self._layers = self.folder / "layers"
        self._merged = self.folder / "merged"
        self._records = self.folder / "records"
        self.ingest = self.folder / "ingest"

    def layer_path(self, diff_id: str) -> Path:
        name = f"{diff_id.removeprefix('sha256:')}-{squashfs.CONVERTER}-{squashfs.OPTIONS}"
        return self._layers / f"{name}.squashfs"

    def merged_path(self, diff_ids: tuple[str, ...]) -> Path:
        """Where these layers are as one. Its converter's version is that of its inputs, too."""
        version = f"{squashfs.CONVERTER}.{MERGER}"
        name = f"{chain_id(diff_ids).removeprefix('sha256:')}-{version}-{squashfs.OPTIONS}"
        return self._merged / f"{name}.squashfs"

    def open(self) -> list[tuple[Record, str | None]]:
        """Make the folders, sweep what a crash left, and read every record.

        Each record comes with the reason why it cannot be used, or None.
        """
        for folder in (self._blobs, self._layers, self._merged, self._records):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            records.sweep(folder)
        shutil.rmtree(self.ingest, ignore_errors=True)
        self.ingest.mkdir(mode=0o700, exist_ok=True)
        found: list[tuple[Record, str | None]] = []
        for path in sorted(self._records.glob("*.json")):
            try:
                record = self._read(path)
            except ThawError as error:
                found.append((Record("", (), (), (), ImageConfig(), 0), str(error)))
                continue
            lost = [item for item in record.diff_ids if not self.layer_path(item).is_file()]
            found.append((record, f"layer {lost[0]} is gone" if lost else None))
        return found

    def _read(self, path: Path) -> Record:
        body = records.read(path, KIND, VERSION)
        image_id = f"sha256:{path.stem}"
        try:
            data = (self._blobs / path.stem).read_bytes()
        except FileNotFoundError as error:
            raise DataLoss(f"the configuration of image {image_id} is gone") from error
        if hashlib.sha256(data).hexdigest() != path.stem:
            raise DataLoss(f"the configuration of image {image_id} is damaged")
        config, diff_ids = manifest.image_config(data)
        try:
            return Record(
                image_id,
                tuple(str(item) for item in body["names"]),
                tuple(str(item) for item in body["digests"]),
                diff_ids,
                config,
                len(data),
                tuple(str(item) for item in body.get("pins", ())),
            )
        except (KeyError, TypeError) as error:
            raise DataLoss(f"record {path} is incomplete") from error

    def write(self, record: Record, blobs: dict[str, bytes]) -> None:
        """Make an image durable: blobs by digest, then its record. Raises OSError."""
        failpoint.hit_sync("store.blobs")
        for digest, data in blobs.items():
            path = self._blobs / digest.removeprefix("sha256:")
            if not path.exists():
                records.write_bytes(path, data, durable=True)
        failpoint.hit_sync("store.record")
        self.update(record)
        failpoint.hit_sync("store.written")

    def update(self, record: Record) -> None:
        """Write the record of an image whose blobs are there."""
        body = {
            "names": list(record.names),
            "digests": list(record.digests),
            "pins": list(record.pins),
        }
        path = self._records / f"{record.id.removeprefix('sha256:')}.json"
        records.write(path, KIND, VERSION, body, durable=True)

    def remove(self, image_id: str) -> None:
        """Remove an image's record; its layers go with `collect`. Idempotent."""
        failpoint.hit_sync("store.remove")
        stem = image_id.removeprefix("sha256:")
        (self._records / f"{stem}.json").unlink(missing_ok=True)
        records.sync_folder(self._records)
        (self._blobs / stem).unlink(missing_ok=True)

    def commit_layer(self, temporary: Path, diff_id: str) -> None:
        """Make a finished layer visible, durably."""
        self._commit(temporary, self.layer_path(diff_id), "layer")

    def commit_merged(self, temporary: Path, diff_ids: tuple[str, ...]) -> None:
        """Make merged layers visible, durably."""
        self._commit(temporary, self.merged_path(diff_ids), "merge")

    def _commit(self, temporary: Path, path: Path, point: str) -> None:
        failpoint.hit_sync(f"{point}.sync")
        descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            os.fchmod(descriptor, 0o400)
        finally:
            os.close(descriptor)
        failpoint.hit_sync(f"{point}.rename")
        os.rename(temporary, path)
        records.sync_folder(path.parent)
        failpoint.hit_sync(f"{point}.renamed")

    def image(self, record: Record) -> Image:
        """The image of a record whose layers are all there. Raises FileNotFoundError."""
        layers = tuple(
            Layer(diff_id, path, path.stat().st_size)
            for diff_id in record.diff_ids
            for path in (self.layer_path(diff_id),)
        )
        merged = None
        path = self.merged_path(record.diff_ids)
        with contextlib.suppress(FileNotFoundError):
            merged = Layer(chain_id(record.diff_ids), path, path.stat().st_size)
        files = {layer.path: layer.size for layer in (*layers, *((merged,) if merged else ()))}
        return Image(
            record.id, record.names, record.digests, record.config_bytes + sum(files.values()),
            record.config, layers, bool(record.pins), merged,
        )  # fmt: skip

    def collect(self, used: set[Path], used_blobs: set[str]) -> int:
        """Remove every layer, merged file and blob but those in use; the bytes freed."""
        freed = 0
        for path in (*self._layers.iterdir(), *self._merged.iterdir()):
            if path not in used:
                freed += _unlink(path)
        for path in self._blobs.iterdir():
            if f"sha256:{path.name}" not in used_blobs:
                freed += _unlink(path)
        return freed

    def usage(self) -> Usage:
        """What the store's files take up, by their allocated blocks."""
        size = inodes = 0
        for folder, names, files in os.walk(self.folder):
            for name in (*names, *files):
                with contextlib.suppress(FileNotFoundError):
                    size += os.lstat(os.path.join(folder, name)).st_blocks * 512
                    inodes += 1
        return Usage(size, inodes, str(self.folder), time.time_ns())

    def free(self) -> int:
        """Bytes that are free on the store's disk."""
        return shutil.disk_usage(self.folder).free


def _unlink(path: Path) -> int:
    try:
        size = path.lstat().st_blocks * 512
        path.unlink()
    except FileNotFoundError:
        return 0
    return size


def with_names(record: Record, names: tuple[str, ...], digest: str | None) -> Record:
    """The record with more tags and another digest reference."""
    digests = {*record.digests, *([digest] if digest else [])}
    return replace(
        record, names=tuple(sorted({*record.names, *names})), digests=tuple(sorted(digests))
    )


def without_names(record: Record, names: tuple[str, ...]) -> Record:
    """The record without these tags, and their pins."""
    return replace(
        record,
        names=tuple(item for item in record.names if item not in names),
        pins=tuple(item for item in record.pins if item not in names),
    )
