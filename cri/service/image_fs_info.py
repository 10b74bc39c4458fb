"""ImageFsInfo: what images take of the disk, and what the pods' scratch disks do."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from hostlib.tasks import in_thread


async def run(daemon: Daemon, request: v1.ImageFsInfoRequest) -> v1.ImageFsInfoResponse:
    del request
    images = await daemon.images.usage()
    used, inodes = await in_thread(_measure, daemon.scratch_folder)
    return v1.ImageFsInfoResponse(
        image_filesystems=[_usage(Path(images.mountpoint), images.bytes, images.inodes)],
        container_filesystems=[_usage(daemon.scratch_folder, used, inodes)],
    )


def _usage(mountpoint: Path, used: int, inodes: int) -> v1.FilesystemUsage:
    return v1.FilesystemUsage(
        timestamp=time.time_ns(),
        fs_id=v1.FilesystemIdentifier(mountpoint=str(mountpoint)),
        used_bytes=v1.UInt64Value(value=used),
        inodes_used=v1.UInt64Value(value=inodes),
    )


def _measure(folder: Path) -> tuple[int, int]:
    """Bytes that the sparse disks really hold, and their number. Blocking."""
    used = inodes = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                used += entry.stat(follow_symlinks=False).st_blocks * 512
                inodes += 1
    except FileNotFoundError:
        pass
    return used, inodes
