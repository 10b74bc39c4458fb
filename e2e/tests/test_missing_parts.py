"""Without kernel, QEMU, disk space or a socket the daemon says what is wrong, and recovers."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cri.api import v1_pb2
from cri.config import default_guest_dir
from e2e.harness.daemon import Daemon
from e2e.harness.outside import sh
from e2e.harness.pods import Pod
from e2e.harness.refs import NGINX, SHELL, SMALL
from e2e.harness.waiting import until
from hostlib import errors

QEMU = "/usr/bin/qemu-system-x86_64"


def says_why(daemon: Daemon, *parts: str) -> None:
    """Status names every one of `parts` and what to do, and so does RunPodSandbox."""
    found = until("Status says why", daemon.runtime_problem, 60).message
    for part in (*parts, "hint: "):
        assert part in found
    with pytest.raises(errors.ThawError) as caught:
        Pod.run(daemon)
    for part in parts:
        assert part in caught.value.message
    assert caught.value.hint
    assert not daemon.client.pods()
    assert not list((daemon.root / "snapshots").glob(".*"))


def recovers(daemon: Daemon) -> None:
    """By itself: the kubelet needs to restart nothing."""
    until("the runtime is ready", lambda: daemon.runtime().status, 120)
    assert Pod.run(daemon, "after").state == v1_pb2.SANDBOX_READY


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    sh("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder))
    try:
        yield
    finally:
        sh("umount", "--lazy", str(folder))


def guest_folder(target: Path) -> Path:
    """A guest image of links to the real one's files, to take some away."""
    target.mkdir()
    for source in default_guest_dir().iterdir():
        (target / source.name).symlink_to(source)
    return target


@pytest.mark.parametrize("missing", ["vmlinuz", "guest.json"])
def test_a_guest_image_that_is_not_there(
    make_daemon: Callable[..., Daemon], tmp_path: Path, missing: str
) -> None:
    guest = guest_folder(tmp_path / "guest")
    (guest / missing).unlink()
    daemon = make_daemon(settings={"guest": {"dir": str(guest)}}).start()
    says_why(daemon, str(guest / missing) if missing == "vmlinuz" else f"no guest image in {guest}")
    (guest / missing).symlink_to(default_guest_dir() / missing)
    recovers(daemon)


def test_a_qemu_that_is_missing_too_old_or_none(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    qemu = tmp_path / "qemu"
    daemon = make_daemon(settings={"vm": {"qemu": str(qemu)}}).start()
    says_why(daemon, str(qemu))
    for script, part in (
        ("echo 'QEMU emulator version 6.2.0 (Debian 1:6.2)'", "too old"),
        ("exit 3", "does not run"),
    ):
        fresh = tmp_path / "fresh"
        fresh.write_text(f"#!/bin/sh\n{script}\n")
        fresh.chmod(0o755)
        fresh.rename(qemu)
        with pytest.raises(errors.FailedPrecondition, match=part) as caught:
            Pod.run(daemon)
        assert str(qemu) in caught.value.message
        assert "7.2" in str(caught.value.hint)
        assert part in daemon.runtime().message
    qemu.unlink()
    qemu.symlink_to(QEMU)
    recovers(daemon)


def test_a_bake_whose_qemu_dies_and_one_on_a_full_disk(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon(settings={"guest": SMALL})
    daemon.share_snapshots = False
    with small_disk(daemon.root / "snapshots", 1):
        daemon.start()
        (victim,) = until("QEMU boots a guest", daemon.qemus, 60)
        os.kill(victim, signal.SIGKILL)
        condition = until("Status says why", daemon.runtime_problem, 60)
        assert not condition.status
        assert "QEMU" in condition.message
        assert "signal 9" in condition.message.lower() or "SIGKILL" in condition.message
        # The next attempt, a pod's, fills the disk.
        with pytest.raises(errors.ResourceExhausted, match="no space") as caught:
            Pod.run(daemon)
        assert caught.value.hint
        assert "no space" in daemon.runtime().message
        assert not list((daemon.root / "snapshots").iterdir())
        sh("mount", "-o", "remount,size=1g", str(daemon.root / "snapshots"))
        recovers(daemon)
        daemon.remove_pods()
        daemon.terminate()


@pytest.mark.parametrize("reserve", [0, 64])
def test_a_pull_on_a_full_disk(make_daemon: Callable[..., Daemon], reserve: int) -> None:
    settings = {"images": {"min_free_mib": reserve}, "snapshot": {"on_demand": True}}
    daemon = make_daemon(settings=settings)
    store = daemon.root / "images"
    with small_disk(store, 6):
        daemon.start()
        with pytest.raises(errors.ResourceExhausted, match=r"space|free") as caught:
            daemon.client.pull_image(NGINX)
        assert str(store) in caught.value.message
        assert caught.value.hint
        assert not [path for path in store.rglob("*") if path.is_file()]
        assert not daemon.client.images()
        if not reserve:
            # What fits is still pulled, and what did not is once there is room.
            daemon.client.pull_image(SHELL)
        sh("mount", "-o", "remount,size=512m", str(store))
        daemon.client.pull_image(NGINX)
        assert len(daemon.client.images()) == (1 if reserve else 2)
        daemon.terminate()


def refuses_to_start(daemon: Daemon, *parts: str) -> None:
    daemon.spawn()
    assert daemon.process is not None
    assert daemon.process.wait(60) == 1
    output = daemon.log.read_text()
    daemon.process = None
    assert "Traceback" not in output
    for part in (*parts, "hint: "):
        assert part in output


def test_a_socket_that_another_daemon_serves(make_daemon: Callable[..., Daemon]) -> None:
    settings = {"snapshot": {"on_demand": True}}
    first, second = make_daemon(settings=settings).start(), make_daemon(settings=settings)
    own, second.socket = second.socket, first.socket
    refuses_to_start(second, str(first.socket))
    assert first.client.version().runtime_name == "thaw"
    second.socket = own
    second.start()


@pytest.mark.parametrize("place", ["file/thawd.sock", "folder"], ids=["in-a-file", "a-folder"])
def test_a_socket_that_cannot_be_made(
    make_daemon: Callable[..., Daemon], tmp_path: Path, place: str
) -> None:
    daemon = make_daemon(settings={"snapshot": {"on_demand": True}})
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    daemon.socket = tmp_path / place
    refuses_to_start(daemon, str(daemon.socket))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("# mine\n\n[pool]\nsize = -1\n", 4, "pool.size"),
        ("[network]\nnonsense = 1\n", 2, "network.nonsense"),
        ("\n[pool\n", 2, "not TOML"),
        ('[network]\nmode = "cni"\ncni_conf_dir = ""\n', 3, "cni_conf_dir"),
    ],
)
def test_an_error_in_a_drop_in_names_its_file_and_line(
    make_daemon: Callable[..., Daemon], text: str, line: int, says: str
) -> None:
    daemon = make_daemon()
    folder = daemon.config.with_name(f"{daemon.config.name}.d")
    folder.mkdir()
    (folder / "10-fine.toml").write_text("[pool]\nsize = 3\n")
    (folder / "20-wrong.toml").write_text(text)
    refuses_to_start(daemon, f"{folder / '20-wrong.toml'}:{line}: ", says)
    shutil.rmtree(folder)
