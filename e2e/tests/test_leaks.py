"""The leak scan sees what it is there for: one leak of each kind is planted, and found."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from e2e.harness import leaks
from e2e.harness.outside import sh
from e2e.harness.waiting import until
from hostlib import ids, linux

VM = "vm0leak0"


class Victim:
    """The folders and the instance of a daemon that never ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.state = folder, folder / "root", folder / "state"
        for place in ("vms", "netns", "network/leases"):
            (self.state / place).mkdir(parents=True)
        (self.root / "scratch").mkdir(parents=True)
        self.instance = ids.instance_id(self.root)

    def found(self) -> list[str]:
        return leaks.all_of(self.instance, self.folder, vms=[VM]) + leaks.remnants(
            self.root, self.state
        )


@contextmanager
def process(*argv: str, cwd: str = "/", env: dict[str, str] | None = None) -> Iterator[None]:
    running = subprocess.Popen(argv, cwd=cwd, env={"PATH": os.environ["PATH"], **(env or {})})
    try:
        yield
    finally:
        running.kill()
        running.wait()


@contextmanager
def commands(before: str, after: str) -> Iterator[None]:
    sh(*before.split())
    try:
        yield
    finally:
        sh(*after.split())


@contextmanager
def file(path: Path) -> Iterator[None]:
    path.touch()
    try:
        yield
    finally:
        path.unlink()


@contextmanager
def cgroup(name: str) -> Iterator[None]:
    # The root of the tree itself, or of one controller of version 1.
    places = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup/memory")]
    place = next(p for p in places if (p / "cgroup.procs").exists()) / name
    place.mkdir()
    try:
        yield
    finally:
        place.rmdir()


@contextmanager
def unix_socket(name: str) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(name)
        yield


@contextmanager
def pinned_namespace(pin: Path) -> Iterator[None]:
    pin.touch()
    linux.mount("/proc/self/ns/net", str(pin), flags=linux.MS_BIND)
    try:
        yield
    finally:
        linux.umount(str(pin))
        pin.unlink()


@contextmanager
def hidden_mount(target: Path) -> Iterator[None]:
    target.mkdir()
    script = f"mount -t tmpfs none {target} && exec env -i sleep 60"
    running = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], cwd="/")
    try:
        yield
    finally:
        running.kill()
        running.wait()


@contextmanager
def loop_device(backing: Path) -> Iterator[None]:
    backing.write_bytes(bytes(1 << 20))
    try:
        device = sh("losetup", "--find", "--show", str(backing)).strip()
    except AssertionError as error:
        pytest.skip(f"this host gives no loop device: {error}")
    try:
        yield
    finally:
        sh("losetup", "--detach", device)


KINDS = [
    "process by its command line", "process by its environment", "process by its folder",
    "mount", "hidden-mount", "pinned netns", "link tap", "link bridge", "nft", "cgroup",
    "cgroup of a VM", "named netns", "file in /run", "file in /dev/shm", "socket of a name",
    "socket in the folder", "loop", "remnant scratch", "remnant lease", "remnant record",
]  # fmt: skip


def plant(kind: str, victim: Victim) -> AbstractContextManager[None]:
    """One leak of the kind, for as long as the context lasts."""
    mark, folder = victim.instance, victim.folder
    if kind == "loop":
        return loop_device(folder / "disk")
    if kind == "hidden-mount":
        return hidden_mount(folder / "hidden")
    if kind == "mount":
        target = folder / "mounted"
        target.mkdir()
        return commands(f"mount -t tmpfs none {target}", f"umount {target}")
    leaves: dict[str, AbstractContextManager[None]] = {
        "process by its command line": process(
            sys.executable, "-c", "import time; time.sleep(60)", str(folder)
        ),
        "process by its environment": process("sleep", "60", env={"A": str(folder)}),
        "process by its folder": process("sleep", "60", cwd=str(folder)),
        "pinned netns": pinned_namespace(victim.state / "netns" / VM),
        "link tap": commands(f"ip tuntap add t{mark}x mode tap", f"ip link delete t{mark}x"),
        "link bridge": commands(
            f"ip link add thaw{mark} type bridge", f"ip link delete thaw{mark}"
        ),
        "nft": commands(f"nft add table inet thaw-{mark}", f"nft delete table inet thaw-{mark}"),
        "cgroup": cgroup(f"thaw-{mark}"),
        "cgroup of a VM": cgroup(f"thaw-{VM}"),
        "named netns": commands(f"ip netns add thaw-{mark}", f"ip netns delete thaw-{mark}"),
        "file in /run": file(Path(f"/run/thaw-{mark}.pid")),
        "file in /dev/shm": file(Path(f"/dev/shm/thaw-{mark}")),
        "socket of a name": unix_socket(f"\0thaw-{mark}"),
        "socket in the folder": unix_socket(str(folder / "x.sock")),
        "remnant scratch": file(victim.root / "scratch" / f"{VM}.ext4"),
        "remnant lease": file(victim.state / "network" / "leases" / "10.0.0.2.json"),
        "remnant record": file(victim.state / ".pod.json.1.tmp"),
    }
    return leaves[kind]


@pytest.fixture
def victim(workspace: Path) -> Iterator[Victim]:
    folder = workspace / "victim"
    folder.mkdir()
    yield Victim(folder)
    sh("rm", "-rf", str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_leak_is_found(victim: Victim, kind: str) -> None:
    assert not victim.found()
    word = {"pinned": "mount", "named": "file"}.get(kind.split()[0], kind.split()[0])
    with plant(kind, victim):
        until(f"{kind} is found", lambda: any(f.startswith(f"{word} ") for f in victim.found()))
    with contextlib.suppress(AssertionError):
        until("it is gone", lambda: not victim.found())
    assert not victim.found()
