"""Volumes as the kubelet makes them, and block devices."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cri.api import v1_pb2
from hostlib.process import ENVIRONMENT

MIB = 1 << 20


class Published:
    """A configMap's folder, written as kubernetes/pkg/volume/util's AtomicWriter does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        folder.mkdir(parents=True)
        folder.chmod(0o777)

    def publish(self, files: Mapping[str, str | bytes], *, mode: int = 0o644, gid: int = 0) -> None:
        self._count += 1
        payload = self.folder / f"..2026_01_01_{self._count}"
        payload.mkdir(mode=0o755)
        for name, content in files.items():
            file = payload / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
            file.chmod(mode)
            os.chown(file, 0, gid)
        data = self.folder / "..data"
        old = self.folder / os.readlink(data) if data.is_symlink() else None
        (self.folder / "..data_tmp").symlink_to(payload.name)
        (self.folder / "..data_tmp").rename(data)
        names = {name.split("/")[0] for name in files}
        for name in names:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        for each in self.folder.iterdir():
            if not each.name.startswith("..") and each.name not in names:
                each.unlink()
        if old is not None:
            shutil.rmtree(old)


class NoLoopDevices(Exception):
    """This machine makes none, for a reason."""


@contextlib.contextmanager
def loop_device(file: Path, size: int) -> Iterator[str]:
    """A block device over `file`, of `size` bytes. Raises `NoLoopDevices`."""
    with file.open("wb") as target:
        target.truncate(size)
    command = ["losetup", "--find", "--show", str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(ENVIRONMENT)
    )
    if done.returncode:
        raise NoLoopDevices(done.stderr.strip())
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, env=dict(ENVIRONMENT))


@dataclass
class Supplies:
    """What brings a container down every path that a volume can take: a published one, an emptyDir,
    a hostPath, and a disk where this machine can make one."""

    mounts: list[v1_pb2.Mount] = field(default_factory=list)
    devices: list[v1_pb2.Device] = field(default_factory=list)


@contextlib.contextmanager
def supplies(folder: Path) -> Iterator[Supplies]:
    """Made in `folder`, for any number of containers, one after the other."""
    published = Published(folder / "config")
    published.publish({"key": "value"})
    empty = folder / "pods/uid/volumes/kubernetes.io~empty-dir/data"
    shared = folder / "host"
    for place in (empty, shared):
        place.mkdir(parents=True)
    made = Supplies(
        [
            v1_pb2.Mount(container_path=path, host_path=str(host), readonly=readonly)
            for path, host, readonly in (
                ("/config", published.folder, True),
                ("/empty", empty, False),
                ("/host", shared, False),
            )
        ]
    )
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(NoLoopDevices):
            device = stack.enter_context(loop_device(folder / "disk", 8 * MIB))
            made.devices.append(
                v1_pb2.Device(host_path=device, container_path="/dev/xvda", permissions="rwm")
            )
        yield made
