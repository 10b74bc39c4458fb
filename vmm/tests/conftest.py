"""Real QEMU, the real guest image, one baked snapshot for the session."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostlib import linux
from hostlib.errors import DataLoss, FailedPrecondition
from vmm import accel, ram, sparse, tap
from vmm.accel import Accelerator
from vmm.bake import bake
from vmm.guest import GuestImage
from vmm.guest_image import build
from vmm.guest_image.__main__ import PROJECT, default_agent
from vmm.microvm import MicroVM
from vmm.shape import MachineShape
from vmm.snapshot import Snapshot
from vmm.tests.containers import Guest, busybox_layer

SHAPE = MachineShape(1, 256)
_ETH_P_ALL = 0x0003

Restore = Callable[..., Awaitable[MicroVM]]


@pytest.fixture(scope="session")
def qemu() -> str:
    return shutil.which("qemu-system-x86_64") or "/usr/bin/qemu-system-x86_64"


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    return accel.probe()


@pytest.fixture(scope="session")
def guest() -> GuestImage:
    out = PROJECT / ".build" / "guest"
    try:
        return GuestImage.load(out)
    except (FailedPrecondition, DataLoss):
        return asyncio.run(build.build(out, default_agent()))


@pytest.fixture(scope="session")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("snapshots")


@pytest.fixture(scope="session")
def snapshot(guest: GuestImage, snapshots: Path, accelerator: Accelerator, qemu: str) -> Snapshot:
    return asyncio.run(
        bake(
            guest,
            SHAPE,
            snapshots=snapshots,
            accel=accelerator,
            qemu=qemu,
            progress=lambda step, share: None,
        )
    )


@pytest.fixture(scope="session")
def ram_fd(snapshot: Snapshot) -> Iterator[int]:
    descriptor = asyncio.run(ram.load(snapshot))
    yield descriptor
    os.close(descriptor)


@pytest.fixture
async def restore(
    snapshot: Snapshot, ram_fd: int, accelerator: Accelerator, qemu: str, tmp_path: Path
) -> AsyncIterator[Restore]:
    """Restores VMs, as many as a test wants, and ends them after it."""
    made: list[MicroVM] = []

    async def work(tap_fd: int | None = None) -> MicroVM:
        share = tmp_path / f"share{len(made)}"
        share.mkdir()
        scratch = tmp_path / f"scratch{len(made)}"
        sparse.clone(snapshot.scratch, scratch)
        vm = await MicroVM.restore(
            snapshot,
            ram_fd=ram_fd,
            tap_fd=tap_fd,
            share=share,
            scratch=scratch,
            accel=accelerator,
            qemu=qemu,
        )
        made.append(vm)
        return vm

    yield work
    for vm in made:
        await vm.kill()


@pytest.fixture(scope="session")
def busybox_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("busybox") / "layer.squashfs"
    asyncio.run(busybox_layer(target))
    return target


@dataclass(frozen=True)
class Peer:
    """What a guest's network leads to: the TAP, and a TCP server at 10.88.0.1 port 7000; `frames`
    gets all that passes the TAP, the host's own frames too."""

    tap: int
    server: socket.socket
    frames: socket.socket


@pytest.fixture
def peer() -> Iterator[Peer]:
    def work() -> Peer:
        # The namespace is this thread's, and lives on with the TAP and the socket.
        linux.unshare(linux.CLONE_NEWNET)
        descriptor = tap.open_tap("tap0")
        for command in ("addr add 10.88.0.1/16 dev tap0", "link set tap0 up"):
            subprocess.run(["ip", *command.split()], check=True)
        server = socket.create_server(("10.88.0.1", 7000))
        server.setblocking(False)
        frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        frames.bind(("tap0", _ETH_P_ALL))
        frames.setblocking(False)
        return Peer(descriptor, server, frames)

    with ThreadPoolExecutor(1) as threads:
        made = threads.submit(work).result()
    yield made
    made.server.close()
    made.frames.close()
    os.close(made.tap)


@pytest.fixture
async def busybox(restore: Restore, peer: Peer, busybox_image: Path) -> Guest:
    """A restored VM whose layer `base` is busybox, and whose network leads to `peer`."""
    vm = await restore(peer.tap)
    await vm.resume()
    await vm.connect()
    guest = Guest(vm)
    await guest.prepare(busybox_image)
    return guest
