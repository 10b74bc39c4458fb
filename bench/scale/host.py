"""What a VM has on the host beside its network: namespaces, cgroups, its process, its files."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from bench.scale.figure import Figure, seconds, used
from cri import pins
from cri.cgroups import Cgroups
from cri.daemon import remove_leftovers
from hostlib import ids, linux
from hostlib.cgroup import Limits
from shim import records, sandbox
from shim.zygote import fork_daemon


def _mounts(folder: Path) -> int:
    """The mounts in `folder`. Others on this host come and go meanwhile."""
    lines = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    return sum(line.split(" ")[4].startswith(f"{folder}/") for line in lines)


def mounts(count: int, folder: Path) -> list[Figure]:
    """A shim's namespaces, beside `count` pins of others."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    # As systemd has it: what is mounted on the host reaches every namespace below it.
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_SHARED)
    netns, share = folder / "netns", folder / "share"
    netns.mkdir()
    pins.open_folder(netns)
    for number in range(count):
        pin = netns / f"crowd{number:03x}"
        pin.touch()
        linux.mount("/proc/self/ns/net", str(pin), flags=linux.MS_BIND)
    held: list[int] = []

    def birth() -> None:
        def body() -> None:
            sandbox.make_network_namespace(netns / "vm000001")
            sandbox.make_mount_namespace(share, netns)
            held.append(_mounts(folder))

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        linux.umount(str(netns / "vm000001"))

    took = seconds(birth, 3)
    linux.umount(str(netns))
    return [
        Figure("birth of a shim's namespaces", took * 1e3, "ms"),
        Figure("mounts in them besides the host's", max(held), "mounts"),
    ]


def cgroups(count: int, folder: Path) -> list[Figure]:
    """A pod's group, beside `count` others; plain folders stand for the kernel's trees."""
    for name in ("memory", "cpu", "pids"):
        (folder / name).mkdir()
        (folder / name / "tasks").touch()
    groups = Cgroups("5ca1e0", folder)
    groups.open()
    for _ in range(count):
        groups.enter(groups.path(ids.new_vm_id(), ""), (), Limits(memory=1))
    path = groups.path("vm000001", "")

    def one() -> None:
        groups.enter(path, (), Limits())
        groups.remove("vm000001", path)

    return [Figure("cgroup made and removed", seconds(one, 50) * 1e6, "us")]


def files(count: int, folder: Path) -> list[Figure]:
    """What a dead VM leaves is removed, beside `count` that live."""
    vms, netns, scratch = folder / "vms", folder / "netns", folder / "scratch"
    for each in (vms, netns, scratch):
        each.mkdir()
    for _ in range(count):
        vm_id = ids.new_vm_id()
        (vms / vm_id).mkdir()
        (netns / vm_id).touch()
        records.scratch_disk(scratch, vm_id).touch()

    def one() -> None:
        (vms / "vm000001").mkdir()
        (netns / "vm000001").touch()
        records.scratch_disk(scratch, "vm000001").touch()
        remove_leftovers(vms / "vm000001", netns / "vm000001", scratch, "vm000001")

    return [Figure("files of a dead VM removed", seconds(one, 50) * 1e6, "us")]


def forks(count: int, folder: Path) -> list[Figure]:  # noqa: ARG001
    """A shim is forked, beside `count` that live."""
    stay, end = os.pipe()
    before = len(os.listdir("/proc/self/fd"))

    def live() -> int:
        os.read(stay, 1)
        return 0

    for _ in range(count):
        fork_daemon(live, (stay,))
    begun = used()
    for _ in range(10):
        fork_daemon(live, (stay,))
    took = (used() - begun) / 10
    opened = len(os.listdir("/proc/self/fd")) - before
    # All of them end with the pipe.
    os.close(end)
    return [
        Figure("fork of a shim", took * 1e3, "ms"),
        Figure("zygote's open files", opened, "files"),
    ]
