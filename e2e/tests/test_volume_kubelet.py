"""Volumes as the kubelet makes them: published by a swapped link, or a tmpfs of the pod's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP, WEBAPP
from e2e.harness.volumes import MIB, NoLoopDevices, Published, loop_device
from e2e.harness.waiting import until
from hostlib import errors, linux


def start(pod: Pod, mounts: list[v1_pb2.Mount], name: str = "main") -> Container:
    root = v1_pb2.LinuxContainerSecurityContext(run_as_user=v1_pb2.Int64Value(value=0))
    linux_config = v1_pb2.LinuxContainerConfig(security_context=root)
    return pod.start(WEBAPP, SLEEP, name=name, mounts=mounts, linux=linux_config)


def mount(path: str, host: Path, **more: Any) -> v1_pb2.Mount:
    return v1_pb2.Mount(container_path=path, host_path=str(host), **more)


WATCH = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
libc.inotify_add_watch(fd, b"/config", 0x380)
libc.inotify_add_watch(fd, b"/config/key", 0x400)
open("/tmp/ready", "w").close()
seen = set()
while not {"moved ..data", "deleted"} <= seen:
    data, at = os.read(fd, 65536), 0
    while at < len(data):
        _, mask, _, length = struct.unpack_from("iIII", data, at)
        name = data[at + 16:at + 16 + length].rstrip(bytes(1)).decode()
        at += 16 + length
        if mask & 0x80:
            seen.add(f"moved {name}")
        if mask & 0x400:
            seen.add("deleted")
print(open("/config/key").read())
"""


def test_what_is_published_anew_is_seen_and_wakes_who_waits(daemon: Daemon, tmp_path: Path) -> None:
    published = Published(tmp_path / "config")
    published.publish({"key": "one", "deep/er": "x", "gone": "y", "binary": bytes(range(256))})
    large = Published(tmp_path / "large")
    large.publish({"big": bytes(3 << 20)})
    pod = Pod.run(daemon)
    container = start(
        pod,
        [
            mount("/config", published.folder, readonly=True),
            mount("/large", large.folder, readonly=True),
            mount("/writable", published.folder),
        ],
    )
    assert container.sh("cat /config/key /config/deep/er /config/gone") == "onexy"
    assert container.sh("wc -c < /config/binary; stat -Lc '%a %u %g' /config/key") == (
        "256\n644 0 0"
    )
    assert container.sh("(echo x > /config/key) 2>&1 || true").lower().count("read-only") == 1
    heard: list[str] = []

    def listen() -> None:
        argv = ["/usr/bin/python3", "-c", WATCH]
        answer = daemon.client.exec_sync(container.id, argv, 240)
        heard.append(answer.stdout.decode() + answer.stderr.decode())

    waiting = threading.Thread(target=listen)
    waiting.start()
    until("it waits", lambda: container.sh("ls /tmp/ready 2>/dev/null || true"), 60)
    published.publish({"key": "two", "new": "z"}, mode=0o440, gid=4242)
    waiting.join()
    assert heard == ["two\n"]
    until("it is whole", lambda: container.sh("ls /config") == "key\nnew")
    assert container.sh("cat /config/new; stat -Lc ' %a %u %g' /config/key") == "z 440 0 4242"
    assert "..2026_01_01_1" not in container.sh("ls -A /config")
    # Too large to be copied, or to be written to: shared, and seen all the same.
    large.publish({"big": "small now"})
    look = "cat /large/big; cat /writable/key"
    until("both are seen", lambda: container.sh(look) == "small nowtwo")
    # Many changes at once end with the last.
    for n in range(30):
        published.publish({"key": f"n{n}"})
    until("the last is seen", lambda: container.sh("cat /config/key; ls /config") == "n29key")
    daemon.client.remove_container(container.id)
    second = start(pod, [mount("/config", published.folder, readonly=True)], "second")
    assert second.sh("cat /config/key") == "n29"


@pytest.fixture
def empty_dir(tmp_path: Path) -> Iterator[Path]:
    """An emptyDir of medium Memory."""
    place = tmp_path / "pods/uid/volumes/kubernetes.io~empty-dir/cache"
    place.mkdir(parents=True)
    linux.mount("tmpfs", str(place), "tmpfs", data="mode=2777,size=16m")
    os.chown(place, 0, 3000)
    yield place
    linux.umount(str(place))


MAP = """
import fcntl, mmap, os, socket
with open("/cache/map", "w+b") as file:
    file.truncate(8192)
    with mmap.mmap(file.fileno(), 8192, mmap.MAP_SHARED) as view:
        view[:5] = b"hello"
    fcntl.flock(file, fcntl.LOCK_EX)
server = socket.socket(socket.AF_UNIX)
server.bind("/cache/sock")
server.listen()
socket.socket(socket.AF_UNIX).connect("/cache/sock")
print(os.statvfs("/cache").f_blocks * os.statvfs("/cache").f_frsize >> 20)
"""


def test_an_empty_dir_of_medium_memory_is_the_guests(
    daemon: Daemon, empty_dir: Path, tmp_path: Path
) -> None:
    sub = empty_dir / "sub"
    sub.mkdir(mode=0o750)
    # As the kubelet does for a subPath.
    bound = tmp_path / "pods/uid/volume-subpaths/cache/main/0"
    bound.mkdir(parents=True)
    linux.mount(str(sub), str(bound), flags=linux.MS_BIND)
    try:
        pod = Pod.run(daemon)
        first = start(pod, [mount("/cache", empty_dir)], "first")
        second = start(pod, [mount("/all", empty_dir), mount("/part", bound)], "second")
        # As pods ask for more shared memory.
        third = start(pod, [mount("/dev/shm", empty_dir)], "third")
    finally:
        linux.umount(str(bound))
    assert first.sh("stat -c '%a %u %g' /cache; grep -c ' /cache tmpfs ' /proc/mounts") == (
        "2777 0 3000\n1"
    )
    answer = daemon.client.exec_sync(first.id, ["/usr/bin/python3", "-c", MAP])
    assert answer.stdout == b"16\n", answer.stderr
    assert second.sh("head -c 5 /all/map; stat -c ' %a' /part; ls /all") == (
        "hello 2750\nmap\nsock\nsub"
    )
    second.sh("echo x > /part/file")
    assert first.sh("cat /cache/sub/file") == "x"
    assert third.sh("cat /dev/shm/sub/file; grep -c ' /dev/shm ' /proc/mounts") == "x\n1"
    assert third.sh("df -k /dev/shm | tail -n 1").split()[1] == str(16 << 10)
    assert os.listdir(empty_dir) == ["sub"]
    daemon.client.remove_container(first.id)
    again = start(pod, [mount("/cache", empty_dir, readonly=True)], "again")
    assert again.sh("cat /cache/sub/file; (echo > /cache/y) 2>&1 || true").startswith("x")
    assert "y" not in second.sh("ls /all").split()


def test_an_empty_dir_on_disk_is_the_guests_too(daemon: Daemon, tmp_path: Path) -> None:
    place = tmp_path / "pods/uid/volumes/kubernetes.io~empty-dir/data"
    (place / "sub").mkdir(parents=True)
    place.chmod(0o777)
    pod = Pod.run(daemon)
    first = start(pod, [mount("/cache", place)], "first")
    second = start(pod, [mount("/all", place), mount("/part", place / "sub")], "second")
    answer = daemon.client.exec_sync(first.id, ["/usr/bin/python3", "-c", MAP])
    assert answer.exit_code == 0, answer.stderr
    assert second.sh("head -c 5 /all/map; ls /all; grep -c ' /all ext4 ' /proc/mounts") == (
        "hellomap\nsock\nsub\n1"
    )
    second.sh("echo x > /part/file")
    assert first.sh("cat /cache/sub/file; stat -c %a /cache") == "x\n777"
    # A file in it as a subPath: the kubelet sees none, and makes a folder of that name.
    first.sh("echo set > /cache/config")
    (place / "config").mkdir()
    third = start(pod, [mount("/etc/config", place / "config")], "third")
    assert third.sh("cat /etc/config") == "set"
    # Links that a container leaves lead nowhere else.
    first.sh("ln -s /etc /cache/evil")
    (place / "evil").mkdir()
    with pytest.raises(errors.InvalidArgument, match="is no folder"):
        start(pod, [mount("/x", place / "evil")], "fourth")
    assert sorted(os.listdir(place)) == ["config", "evil", "sub"]


def test_one_that_has_files_on_the_host_stays_there(daemon: Daemon, empty_dir: Path) -> None:
    (empty_dir / "there").write_text("before")
    container = start(Pod.run(daemon), [mount("/cache", empty_dir)])
    assert container.sh("cat /cache/there; echo x > /cache/made") == "before"
    assert (empty_dir / "made").read_text() == "x\n"


FILES = """
import os
os.setxattr("/data/file", "user.note", b"kept")
with open("/data/sparse", "wb") as file:
    file.truncate(1 << 20)
os.link("/data/file", "/data/again")
"""


def unmount(place: Path) -> None:
    """Whether it is still mounted or not."""
    with contextlib.suppress(OSError):
        linux.umount(str(place))


def test_a_csi_volume_as_the_kubelet_mounts_it(daemon: Daemon, tmp_path: Path) -> None:
    """The driver's file system, with the group that the kubelet gives it, whole and a sub path; and
    one in raw blocks, behind the kubelet's link. Once its containers are removed nobody on the host
    holds it: the driver can take it away."""
    plugin = "kubernetes.io~csi/pvc-1"
    place = tmp_path / "pods/uid/volumes" / plugin / "mount"
    bound = tmp_path / "pods/uid/volume-subpaths/pvc-1/main/0"
    blocks = tmp_path / "pods/uid/volumeDevices" / plugin
    with contextlib.ExitStack() as stack:
        # As the host of a kubelet has its mounts.
        linux.mount(str(tmp_path), str(tmp_path), flags=linux.MS_BIND)
        stack.callback(unmount, tmp_path)
        linux.mount("none", str(tmp_path), flags=linux.MS_SHARED)
        try:
            disk, raw = (
                stack.enter_context(loop_device(tmp_path / name, 16 * MIB)) for name in ("a", "b")
            )
        except NoLoopDevices as error:
            pytest.skip(f"this machine makes no loop devices: {error}")
        subprocess.run(["mkfs.ext4", "-q", disk], check=True)
        for folder in (place, bound, blocks.parent):
            folder.mkdir(parents=True)
        blocks.symlink_to(raw)
        linux.mount(disk, str(place), "ext4")
        stack.callback(unmount, place)
        (place / "sub").mkdir()
        for folder in (place, place / "sub"):
            os.chown(folder, 0, 2000)
            folder.chmod(0o2775)
        linux.mount(str(place / "sub"), str(bound), flags=linux.MS_BIND)
        stack.callback(unmount, bound)
        pod = Pod.run(daemon)
        context = v1_pb2.LinuxContainerSecurityContext(
            run_as_user=v1_pb2.Int64Value(value=1000), supplemental_groups=[2000]
        )
        main = pod.start(
            WEBAPP,
            SLEEP,
            mounts=[mount("/data", place), mount("/sub", bound)],
            linux=v1_pb2.LinuxContainerConfig(security_context=context),
        )
        main.sh("umask 002; echo x > /data/file; echo y > /sub/file")
        answer = daemon.client.exec_sync(main.id, ["/usr/bin/python3", "-c", FILES])
        assert answer.exit_code == 0, answer.stderr
        assert main.sh("stat -c '%u %g %a %h' /data/file; cat /data/sub/file") == (
            "1000 2000 664 2\ny"
        )
        free = main.sh("df -k /data | tail -n 1").split()
        assert int(free[1]) < 16 << 10, free
        other = pod.start(
            SHELL,
            SLEEP,
            name="other",
            mounts=[mount("/data", place, readonly=True)],
            devices=[v1_pb2.Device(host_path=str(blocks), container_path="/dev/xvda")],
        )
        assert other.sh("cat /data/again; printf raw > /dev/xvda") == "x"
        assert "read-only" in other.sh("(echo > /data/x) 2>&1 || true").lower()
        for each in (main, other):
            daemon.client.stop_container(each.id, 0)
            daemon.client.remove_container(each.id)
        assert os.getxattr(place / "again", "user.note") == b"kept"
        assert (place / "sparse").stat().st_blocks == 0
        for folder in (bound, place):
            linux.umount(str(folder), flags=0)
        for device in (disk, raw):
            # Fails as long as it is mounted, or open, anywhere.
            os.close(os.open(device, os.O_RDWR | os.O_EXCL))
        assert (tmp_path / "b").read_bytes()[:3] == b"raw"
        assert pod.state == v1_pb2.SANDBOX_READY
