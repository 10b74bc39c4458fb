"""Mounts of the host: read-only or not with what is mounted below, propagation, what is refused."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cri.api import v1_pb2
from demo import oci
from e2e.harness.daemon import Daemon
from e2e.harness.layered import layered
from e2e.harness.pods import Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.registry import Registry
from hostlib import linux
from hostlib.errors import ThawError

FOLLOWS = v1_pb2.PROPAGATION_HOST_TO_CONTAINER


def mount(path: str, host: Path, **more: Any) -> v1_pb2.Mount:
    return v1_pb2.Mount(container_path=path, host_path=str(host), **more)


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[Path]:
    """A tmpfs at `place`, gone with all that is below it afterwards."""
    place.mkdir(exist_ok=True)
    linux.mount("thaw-test", str(place), "tmpfs", data="mode=0777")
    try:
        yield place
    finally:
        linux.umount(str(place))


def written(path: str) -> str:
    """A script that says whether a file can be made at `path`, and why not."""
    return f"(echo x > {path}) 2>&1 | grep -o 'Read-only file system' || echo written"


def test_what_is_mounted_below_a_volume(daemon: Daemon, tmp_path: Path) -> None:
    """It is there, writable below a read-only volume, and not below a recursively read-only one;
    what is mounted later is seen by who asked for it, as long as it is there."""
    with mounted(tmp_path / "volume") as volume, contextlib.ExitStack() as stack:
        linux.mount("none", str(volume), flags=linux.MS_SHARED)
        stack.enter_context(mounted(volume / "below"))
        (volume / "later").mkdir()
        container = Pod.run(daemon).start(
            SHELL,
            SLEEP,
            mounts=[
                mount("/ro", volume, readonly=True),
                mount("/rro", volume, readonly=True, recursive_read_only=True),
                mount("/rw", volume),
                mount("/follows", volume, propagation=FOLLOWS),
                mount("/ro-follows", volume, propagation=FOLLOWS, readonly=True),
            ],
        )
        for path in ("/rro/x", "/rro/below/x", "/ro/x", "/ro-follows/x"):
            assert container.sh(written(path)) == "Read-only file system", path
        for path in ("/ro/below/a", "/rw/b", "/rw/below/c", "/follows/d", "/ro-follows/below/e"):
            assert container.sh(written(path)) == "written", path
        assert sorted(os.listdir(volume / "below")) == ["a", "c", "e"]
        later = stack.enter_context(mounted(volume / "later"))
        (later / "seen").write_text("live")
        look = "for f in rw follows ro-follows; do cat /$f/later/seen 2>&1 | tail -c 5; done"
        assert container.sh(look).count("live") == 2
        assert container.sh("ls /rw/later") == ""
        linux.umount(str(later))
        assert (
            container.sh("ls /rw/later /follows/later /ro-follows/later | grep seen || true") == ""
        )
        # So that the stack finds it.
        linux.mount("thaw-test", str(later), "tmpfs")


def test_mount_options(daemon: Daemon, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho runs\n")
    program.chmod(0o755)
    container = Pod.run(daemon).start(
        SHELL,
        SLEEP,
        mounts=[
            mount("/plain", tmp_path),
            mount("/bare", tmp_path, mount_options=["noexec", "nosuid", "nodev"]),
            mount("/ro", tmp_path, readonly=True, mount_options=["noexec"]),
        ],
    )
    assert container.sh("/plain/program") == "runs"
    for path in ("/bare", "/ro"):
        said = container.sh(f"{path}/program 2>&1 || true")
        assert "permission denied" in said.lower(), said
    options = {
        fields[1]: fields[3].split(",")
        for fields in (line.split() for line in container.sh("cat /proc/mounts").splitlines())
    }
    assert {"rw", "noexec", "nosuid", "nodev"} <= set(options["/bare"])
    assert {"ro", "noexec", "nodev"} <= set(options["/ro"])
    assert {"rw", "nodev"} <= set(options["/plain"])
    assert "noexec" not in options["/plain"]


def test_files_over_files_of_the_image(daemon: Daemon, tmp_path: Path) -> None:
    """Also /dev/termination-log, what the kubelet makes, and a file through a link of the host."""
    (tmp_path / "hosts").write_text("127.0.0.1 mine\n")
    (tmp_path / "link").symlink_to("hosts")
    message = tmp_path / "message"
    message.touch(0o666)
    container = Pod.run(daemon).start(
        SHELL,
        SLEEP,
        mounts=[
            mount("/etc/passwd", tmp_path / "link"),
            mount("/etc/hosts", tmp_path / "hosts"),
            mount("/dev/termination-log", message),
            mount("/new/folder/file", tmp_path / "hosts", readonly=True),
            mount("/made", tmp_path / "missing/deep"),
        ],
    )
    assert container.sh("cat /etc/passwd /etc/hosts /new/folder/file").count("mine") == 3
    container.sh("echo died > /dev/termination-log; echo y > /made/y; stat -c %a /dev/null")
    assert message.read_text() == "died\n"
    assert (tmp_path / "missing/deep/y").exists()


def test_mounts_in_mounts(
    daemon: Daemon, registry: Registry, built: dict[str, oci.Image], tmp_path: Path
) -> None:
    """The outer ones first, in whatever order they are asked for, of whatever kind they are."""
    ref = registry.push(layered(built["demo/shell"], [oci.Layer().file("v/image", "i")]), "e2e/vol")
    daemon.client.pull_image(ref)
    outer, inner, own = tmp_path / "outer", tmp_path / "inner", tmp_path / "own"
    empty = tmp_path / "pods/uid/volumes/kubernetes.io~empty-dir/data"
    for folder in (outer, inner, own, empty):
        folder.mkdir(parents=True)
        (folder / "name").write_text(folder.name)
    (empty / "name").unlink()
    container = Pod.run(daemon).start(
        SHELL,
        SLEEP,
        mounts=[
            mount("/data/in/deep/own", own),
            mount("/data/in/file", inner / "name", readonly=True),
            mount("/data/in", inner),
            v1_pb2.Mount(
                container_path="/data/image",
                image=v1_pb2.ImageSpec(image=ref),
                image_sub_path="v",
                readonly=True,
            ),
            mount("/data/empty", empty),
            mount("/data", outer),
            mount("etc/relative", own),
            mount("/etc/../etc/./dots/", own),
        ],
    )
    look = "cat /data/name /data/in/name /data/in/deep/own/name /data/in/file /data/image/image"
    assert container.sh(look) == "outerinnerowninneri"
    assert container.sh("cat /etc/relative/name /etc/dots/name") == "ownown"
    container.sh("echo 1 > /data/a; echo 2 > /data/in/b; echo 3 > /data/in/deep/own/c")
    assert "Read-only" in container.sh(written("/data/in/file"))
    container.sh("echo 4 > /data/empty/d")
    assert [(outer / "a").exists(), (inner / "b").exists(), (own / "c").exists()] == [True] * 3
    # Where they lie the outer ones got empty folders and files, as with runc.
    assert sorted(os.listdir(outer)) == ["a", "empty", "image", "in", "name"]
    assert sorted(os.listdir(inner)) == ["b", "deep", "file", "name"]
    assert not os.listdir(empty)


def test_sub_paths_as_the_kubelet_binds_them(daemon: Daemon, tmp_path: Path) -> None:
    """Of a folder and of a file; a bind mount of what was opened, which later renames do not
    lead elsewhere."""
    volume = tmp_path / "volume"
    (volume / "sub").mkdir(parents=True)
    (volume / "sub/in").write_text("sub")
    (volume / "file").write_text("file")
    bound = tmp_path / "pods/uid/volume-subpaths/data/main"
    (bound / "0").mkdir(parents=True)
    (bound / "1").touch()
    with contextlib.ExitStack() as stack:
        for number, source in (("0", "sub"), ("1", "file")):
            linux.mount(str(volume / source), str(bound / number), flags=linux.MS_BIND)
            stack.callback(linux.umount, str(bound / number))
        container = Pod.run(daemon).start(
            SHELL, SLEEP, mounts=[mount("/sub", bound / "0"), mount("/etc/issue", bound / "1")]
        )
        assert container.sh("cat /sub/in /etc/issue; ls /sub/..").startswith("subfile")
        (volume / "sub").rename(volume / "moved")
        (volume / "sub").symlink_to("/etc")
        container.sh("echo x > /sub/made; echo y > /etc/issue")
        assert (volume / "moved/made").read_text() == "x\n"
        assert (volume / "file").read_text() == "y\n"
        daemon.client.remove_container(container.id)


def refused(pod: Pod, **fields: Any) -> ThawError:
    with pytest.raises(ThawError) as caught:
        pod.create(SHELL, SLEEP, **fields)
    return caught.value


def test_what_no_microvm_can_have_is_refused_in_words(daemon: Daemon, tmp_path: Path) -> None:
    pod = Pod.run(daemon)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        # The path of a socket is short.
        place = Path(f"/tmp/thaw-test-{os.getpid()}.sock")
        listener.bind(str(place))
        try:
            error = refused(pod, mounts=[mount("/run/docker.sock", place)])
        finally:
            place.unlink()
    assert error.code == "FAILED_PRECONDITION"
    assert "is a socket" in error.message
    assert "over the network" in str(error)
    private = tmp_path / "private"
    with mounted(private):
        linux.mount("none", str(private), flags=linux.MS_PRIVATE)
        error = refused(pod, mounts=[mount("/a", private, propagation=FOLLOWS)])
    assert "neither a shared nor a slave mount" in error.message
    mapping = v1_pb2.IDMapping(host_id=1, container_id=0, length=1)
    both = v1_pb2.PROPAGATION_BIDIRECTIONAL
    for fields, code, words in (
        ({"host": tmp_path / "fifo"}, "FAILED_PRECONDITION", "is a FIFO"),
        ({"host": tmp_path, "propagation": both}, "FAILED_PRECONDITION", "cannot appear on"),
        ({"host": Path("/dev/kmsg")}, "UNIMPLEMENTED", "is the host's"),
        ({"host": tmp_path / "file/below"}, "FAILED_PRECONDITION", "cannot be used"),
        ({"host": tmp_path, "uidMappings": [mapping]}, "INVALID_ARGUMENT", "0 group mappings"),
        ({"host": tmp_path, "gidMappings": [mapping]}, "INVALID_ARGUMENT", "0 user mappings"),
        ({"host": tmp_path, "recursive_read_only": True}, "INVALID_ARGUMENT", "needs readonly"),
        (
            {
                "host": tmp_path,
                "readonly": True,
                "recursive_read_only": True,
                "propagation": FOLLOWS,
            },
            "INVALID_ARGUMENT",
            "needs propagation PRIVATE",
        ),
        ({"host": tmp_path, "mount_options": ["rw,suid"]}, "INVALID_ARGUMENT", "unknown mount"),
    ):
        error = refused(pod, mounts=[mount("/dev/x", **fields)])
        assert error.code == code, error
        assert words in error.message, error
    # Nothing of them is left, and the pod goes on.
    assert daemon.client.containers() == []
    assert (
        pod.start(SHELL, SLEEP, mounts=[mount("/a", tmp_path)]).sh("ls /a") == "fifo\nfile\nprivate"
    )
