"""Volumes: files of any owner are the same on both sides, whoever works on them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SLEEP, WEBAPP
from e2e.harness.waiting import until
from hostlib import linux


def owned(path: Path) -> tuple[int, int, int]:
    """Owner, group and mode bits on the host."""
    found = path.lstat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def start(
    pod: Pod, folder: Path, *, user: int = 0, name: str = "main", readonly: bool = False
) -> Container:
    """A container of this user with `folder` at /data."""
    context = v1_pb2.LinuxContainerSecurityContext(run_as_user=v1_pb2.Int64Value(value=user))
    return pod.start(
        WEBAPP,
        SLEEP,
        name=name,
        mounts=[v1_pb2.Mount(container_path="/data", host_path=str(folder), readonly=readonly)],
        linux=v1_pb2.LinuxContainerConfig(security_context=context),
    )


def python(container: Container, script: str) -> str:
    """What a Python script prints inside; AssertionError when it fails."""
    argv = ["/usr/bin/python3", "-c", script]
    answer = container.pod.daemon.client.exec_sync(container.id, argv)
    assert answer.exit_code == 0, answer.stderr.decode()
    return answer.stdout.decode().strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A volume as the kubelet makes an emptyDir."""
    made = tmp_path / "volume"
    made.mkdir()
    made.chmod(0o777)
    return made


def test_files_have_the_owner_who_made_them(daemon: Daemon, folder: Path) -> None:
    pod = Pod.run(daemon)
    root = start(pod, folder, name="root")
    app = start(pod, folder, name="app", user=1000)
    root.sh("umask 022; echo r > /data/r; mkdir /data/dir; mkdir -m 700 /data/closed")
    app.sh("umask 027; echo a > /data/a; mkdir /data/own; echo b > /data/own/b; ln -s a /data/l")
    assert owned(folder / "r") == (0, 0, 0o644)
    assert owned(folder / "dir") == (0, 0, 0o755)
    assert owned(folder / "closed") == (0, 0, 0o700)
    assert owned(folder / "a")[::2] == (1000, 0o640)
    assert owned(folder / "own")[::2] == (1000, 0o750)
    assert owned(folder / "own/b")[::2] == (1000, 0o640)
    assert owned(folder / "l")[0] == 1000
    assert root.sh("cat /data/own/b; rm -r /data/own; ls /data") == "b\na\nclosed\ndir\nl\nr"
    denied = app.sh("for f in r dir/x closed/x; do (echo x > /data/$f) 2>&1; done; true")
    assert denied.lower().count("permission denied") == 3
    assert app.sh("cat /data/r") == "r"
    assert (folder / "r").read_text() == "r\n"


def test_files_of_the_host_keep_their_owner_and_can_be_given_away(
    daemon: Daemon, folder: Path
) -> None:
    theirs = folder / "theirs"
    theirs.write_text("secret")
    theirs.chmod(0o600)
    os.chown(theirs, 4321, 99)
    deep = folder / "deep"
    deep.mkdir(mode=0o700)
    os.chown(deep, 1000, 1000)
    (deep / "file").write_text("of the application")
    os.chown(deep / "file", 1000, 1000)
    pod = Pod.run(daemon)
    root = start(pod, folder, name="root")
    app = start(pod, folder, name="app", user=1000)
    assert root.sh("stat -c '%u %g %a' /data/theirs; cat /data/theirs") == "4321 99 600\nsecret"
    assert app.sh("cat /data/deep/file; echo more >> /data/deep/file") == "of the application"
    assert app.sh("cat /data/theirs 2>&1 || true").lower().endswith("permission denied")
    root.sh("chown 1000:50 /data/theirs; chmod 640 /data/theirs; chown -h 7:8 /data/deep")
    assert owned(theirs) == (1000, 50, 0o640)
    assert owned(deep) == (7, 8, 0o700)
    assert app.sh("cat /data/theirs") == "secret"
    assert "not permitted" in app.sh("chown 0 /data/theirs 2>&1 || true").lower()
    (folder / "live").write_text("new")
    assert app.sh("cat /data/live") == "new"


def test_set_id_bits_groups_and_attributes_stay(daemon: Daemon, folder: Path) -> None:
    team = folder / "team"
    team.mkdir()
    os.chown(team, 0, 4242)
    team.chmod(0o2777)
    pod = Pod.run(daemon)
    root = start(pod, folder)
    python(
        root,
        "import os\n"
        "os.chdir('/data')\n"
        "open('tool', 'w').write('x')\n"
        "os.chown('tool', 33, 4242)\n"
        "os.chmod('tool', 0o6755)\n"
        "open('team/file', 'w').write('y')\n"
        "os.mkdir('team/sub')\n"
        "os.setxattr('tool', 'user.note', b'kept')\n"
        "os.link('tool', 'hard')\n"
        "os.rename('team/file', 'team/other')\n"
        "held = open('held', 'w+')\n"
        "os.unlink('held')\n"
        "held.write('still')\n"
        "held.flush()\n",
    )
    assert owned(folder / "tool") == (33, 4242, 0o6755)
    assert (folder / "hard").stat().st_nlink == 2
    assert owned(team / "other")[1] == 4242
    assert owned(team / "sub")[1] == 4242
    assert os.getxattr(folder / "tool", "user.note") == b"kept"
    assert not (folder / "held").exists()


def test_a_guest_makes_no_device_node_on_the_host(daemon: Daemon, folder: Path) -> None:
    root = start(Pod.run(daemon), folder)
    said = python(
        root,
        "import os, stat\n"
        "try: os.mknod('/data/disk', 0o666 | stat.S_IFBLK, os.makedev(8, 0))\n"
        "except OSError as error: print(error.strerror)\n",
    )
    assert said == "Operation not permitted"
    assert not list(folder.iterdir())


def test_a_read_only_volume_is_one(daemon: Daemon, folder: Path) -> None:
    (folder / "file").write_text("as it was")
    pod = Pod.run(daemon)
    root = start(pod, folder, readonly=True)
    assert root.sh("cat /data/file") == "as it was"
    assert "read-only" in root.sh("(echo x > /data/file) 2>&1 || true").lower()
    (folder / "file").write_text("changed")
    until("the container sees it", lambda: root.sh("cat /data/file") == "changed")


def test_a_volume_is_let_go_with_its_container(daemon: Daemon, tmp_path: Path) -> None:
    """What the container's end leaves mounted would keep the host from unmounting the volume."""
    place = tmp_path / "mounted"
    place.mkdir()
    linux.mount("thaw-test", str(place), "tmpfs", data="mode=0777")
    try:
        pod = Pod.run(daemon)
        first = start(pod, place, name="first")
        first.sh("echo kept > /data/kept")
        qemu = daemon.records()[pod.vm]["qemu_pid"]
        table = Path(f"/proc/{qemu}/mountinfo")
        assert "thaw-test" in table.read_text()
        daemon.client.stop_container(first.id, 0)
        daemon.client.remove_container(first.id)
        assert "thaw-test" not in table.read_text()
        second = start(pod, place, name="second")
        assert second.sh("cat /data/kept") == "kept"
    finally:
        linux.umount(str(place))
