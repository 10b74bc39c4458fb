"""What a worker whose guest has taken it over can do: nothing beyond its own pod."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from cri.api import v1_pb2
from e2e.harness import intruder
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import NGINX, SHELL, SLEEP
from hostlib import ids

CAPABILITIES = f"{0b11011:016x}"
"""CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID."""


def test_workers_have_no_rights_but_over_files(daemon: Daemon) -> None:
    pods = [Pod.run(daemon), Pod.run(daemon)]
    pods[0].start(SHELL, SLEEP)
    # One that is being born may have no worker yet.
    born = ("pooled", "running")
    records = {vm: each for vm, each in daemon.records().items() if each["state"] in born}
    seen = set()
    assert records.keys() >= {pod.vm for pod in pods}
    for record in records.values():
        found = intruder.status(record["qemu_pid"])
        uid = ids.worker_uid(ids.WORKER_UID_BASE, record["shim_pid"])
        assert found["Uid"].split() == found["Gid"].split() == [str(uid)] * 4
        assert found["Groups"] == ""
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert found[name] == CAPABILITIES, name
        assert found["NoNewPrivs"] == "1"
        assert found["Seccomp"] == "2"
        seen.add(uid)
    assert len(seen) == len(records) >= 2


def test_a_worker_leaves_no_core_and_has_namespaces_of_its_own(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    record = daemon.records()[pod.vm]
    qemu, shim = record["qemu_pid"], record["shim_pid"]
    limits = Path(f"/proc/{qemu}/limits").read_text().splitlines()
    (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
    assert core[4:6] == ["0", "0"]
    assert int(Path(f"/proc/{qemu}/coredump_filter").read_text(), 16) == 0

    def namespace(pid: int | str, kind: str) -> str:
        return os.readlink(f"/proc/{pid}/ns/{kind}")

    for kind in ("mnt", "ipc", "net"):
        assert namespace(qemu, kind) != namespace("self", kind)
    assert namespace(qemu, "mnt") != namespace(shim, "mnt")
    # Sockets, memory, its own disk and events: the descriptors that it was given or made.
    for number in os.listdir(f"/proc/{qemu}/fd"):
        try:
            target = os.readlink(f"/proc/{qemu}/fd/{number}")
        except FileNotFoundError:
            # It was closed meanwhile.
            continue
        kinds = ("socket:", "anon_inode:", "/memfd:thaw-ram", "pipe:")
        own = (record["scratch"], "/dev/net/tun", "/dev/null", "/dev/kvm", "/dev/vhost-vsock")
        assert target.startswith(kinds) or target in (*own, "/worker/share"), target


def test_a_worker_sees_its_programs_and_its_volumes_alone(daemon: Daemon, tmp_path: Path) -> None:
    volume, other = tmp_path / "volume", tmp_path / "other"
    for folder in (volume, other):
        folder.mkdir()
        (folder / "file").write_text("content")
        os.mknod(folder / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    pod, neighbour = Pod.run(daemon), Pod.run(daemon)
    pod.start(
        NGINX, mounts=[v1_pb2.Mount(container_path="/data", host_path=str(volume), readonly=True)]
    )
    neighbour.start(
        SHELL, SLEEP, mounts=[v1_pb2.Mount(container_path="/data", host_path=str(other))]
    )
    records = daemon.records()
    mine, theirs = records[pod.vm], records[neighbour.vm]
    closed = [
        daemon.root / "images",
        daemon.root / "snapshots",
        mine["scratch"],
        theirs["scratch"],
        daemon.state / "vms" / pod.vm / "shim.sock",
        daemon.state / "vms" / neighbour.vm / "vm.json",
        daemon.config,
        daemon.folder / "hosts",
        daemon.logs,
        other / "file",
        volume / "file",
        "/etc/passwd",
        "/root",
        "/run",
        "/dev/null",
        "/sys",
        "/proc/1/environ",
        f"/proc/{mine['shim_pid']}/root/etc/passwd",
        f"/proc/{theirs['qemu_pid']}/root/share",
    ]
    assert all(Path(path).exists() for path in closed)
    found = intruder.attempt(mine["qemu_pid"], *(("read", str(path)) for path in closed))
    assert dict(zip(closed, found, strict=True)) == dict.fromkeys(closed, "ENOENT")

    (share,) = os.listdir(f"/proc/{mine['qemu_pid']}/root/share")
    tries = {
        ("read", f"/share/{share}/file"): "",
        ("write", f"/share/{share}/file"): "EROFS",
        ("write", f"/share/{share}/new"): "EROFS",
        ("read", f"/share/{share}/null"): "EACCES",
        ("read", f"/share/{share}/../../../etc/passwd"): "ENOENT",
        ("read", "/usr/bin/qemu-system-x86_64"): "",
        ("write", "/usr/bin/env"): "EROFS",
        ("write", "/usr/bin/new"): "EROFS",
        ("write", "/new"): "EROFS",
        ("write", "/proc/self/oom_score_adj"): "EROFS",
    }
    assert dict(zip(tries, intruder.attempt(mine["qemu_pid"], *tries), strict=True)) == tries


def test_a_worker_cannot_reach_other_processes_nor_become_more(daemon: Daemon) -> None:
    pod, neighbour = Pod.run(daemon), Pod.run(daemon)
    pod.start(NGINX)
    records = daemon.records()
    mine, theirs = records[pod.vm], records[neighbour.vm]
    assert daemon.process is not None
    victims = (theirs["qemu_pid"], theirs["shim_pid"], mine["shim_pid"], daemon.process.pid, 1)
    tries: dict[tuple[str, str], str] = {
        ("processes", str(mine["qemu_pid"])): "ENOENT",
        ("user namespace", ""): "EPERM",
        ("mount namespace", ""): "EPERM",
        ("mount", ""): "EPERM",
        ("root", ""): "EPERM",
        ("chroot", "/usr"): "EPERM",
        ("device", "/share/disk"): "EPERM",
        # Layers are in other pods' VMs too.
        ("change", "content"): "EROFS",
        ("change", "mode"): "EROFS",
    }
    tries |= {(kind, str(pid)): "EPERM" for pid in victims for kind in ("kill", "trace")}
    assert dict(zip(tries, intruder.attempt(mine["qemu_pid"], *tries), strict=True)) == tries


def test_the_range_of_ids_is_the_configured_one(make_daemon: Callable[..., Daemon]) -> None:
    for base in (1 << 30, 0):
        daemon = make_daemon(settings={"vm": {"uid_base": base}, "pool": {"size": 0}}).start()
        daemon.client.pull_image(SHELL)
        pod = Pod.run(daemon)
        pod.start(SHELL, SLEEP)
        record = daemon.records()[pod.vm]
        found = intruder.status(record["qemu_pid"])
        assert found["Uid"].split()[0] == str(ids.worker_uid(base, record["shim_pid"]))
        assert found["CapEff"] == found["CapBnd"] == CAPABILITIES
