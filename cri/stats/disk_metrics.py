"""Metrics of disks. A control group of version 2 tells bytes and operations; the rest the kernel
counts for a disk, and so for the pod, whose containers all write to one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cri.api import v1_pb2 as v1
from cri.stats.family import Family, Seen, Values

_DEVICE: Final = "scratch"
"""The disk of all writable layers of a pod; the only one that containers write to."""


def _disk(name: str, text: str, key: str) -> Family:
    return Family(
        name,
        text,
        v1.COUNTER,
        lambda seen: [((_DEVICE,), seen.said["io"].get(key, 0))],
        ("device",),
    )


def _room(name: str, text: str, of: Callable[[Seen], int | None]) -> Family:
    return Family(name, text, v1.GAUGE, lambda seen: [((_DEVICE,), of(seen))], ("device",))


def _by_disk(seen: Seen) -> Values:
    for disk, counts in seen.said.get("disks", {}).items():
        major, _, minor = disk.partition(":")
        for operation, count in zip(("Read", "Write"), counts, strict=True):
            yield (disk, major, minor, operation), count


FAMILIES: Final = (
    _disk("container_fs_reads_bytes_total", "Bytes read from the disk.", "rbytes"),
    _disk("container_fs_writes_bytes_total", "Bytes written to the disk.", "wbytes"),
    _disk("container_fs_reads_total", "Reads from the disk.", "rios"),
    _disk("container_fs_writes_total", "Writes to the disk.", "wios"),
    _room(
        "container_fs_usage_bytes",
        "What the writable layer takes, in bytes.",
        lambda seen: seen.written,
    ),
    _room(
        "container_fs_limit_bytes",
        "What the disk of the writable layers holds, in bytes.",
        lambda seen: seen.scratch.get("bytes"),
    ),
    _room(
        "container_fs_inodes_free",
        "Inodes that are free on it.",
        lambda seen: seen.scratch.get("inodes_free"),
    ),
    _room(
        "container_fs_inodes_total", "Inodes that it has.", lambda seen: seen.scratch.get("inodes")
    ),
    Family(
        "container_blkio_device_usage_total",
        "Bytes moved, by disk of the pod's VM and operation.",
        v1.COUNTER,
        _by_disk,
        ("device", "major", "minor", "operation"),
    ),
)


def _of_disk(name: str, text: str, kind: v1.MetricType = v1.COUNTER) -> Family:
    return Family(f"container_fs_{name}", text, kind, lambda _seen: (), ("device",))


_MS: Final = 1000

OF_THE_DISK: Final = (
    (_of_disk("reads_merged_total", "Reads that were one with others."), 1, 1),
    (_of_disk("sector_reads_total", "Sectors of 512 bytes read."), 2, 1),
    (_of_disk("read_seconds_total", "Time that reads took, in full seconds."), 3, _MS),
    (_of_disk("writes_merged_total", "Writes that were one with others."), 5, 1),
    (_of_disk("sector_writes_total", "Sectors of 512 bytes written."), 6, 1),
    (_of_disk("write_seconds_total", "Time that writes took, in full seconds."), 7, _MS),
    (_of_disk("io_current", "Reads and writes that are under way.", v1.GAUGE), 8, 1),
    (
        _of_disk("io_time_seconds_total", "Time with any under way, in full seconds."),
        9,
        _MS,
    ),
    (
        _of_disk(
            "io_time_weighted_seconds_total",
            "Time with any under way, times how many they were, in full seconds.",
        ),
        10,
        _MS,
    ),
)
"""Each with its place among the kernel's numbers of a disk, and how many of these make one."""


def of_disk(at: int, who: tuple[str, ...], counts: Sequence[int]) -> Iterator[v1.Metric]:
    """The pod's own series. `counts` is what the kernel counts of the disk (docs/protocol.md)."""
    for family, place, unit in OF_THE_DISK:
        yield family.metric(at, who, (_DEVICE,), counts[place] // unit)
