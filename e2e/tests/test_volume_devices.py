"""Devices: block devices of the host are disks of the guest, the kernel's own are the guest's."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.volumes import MIB, NoLoopDevices, loop_device
from hostlib import errors

Disk = tuple[str, Path]


def device(host: str, path: str, permissions: str = "rwm") -> v1_pb2.Device:
    return v1_pb2.Device(host_path=host, container_path=path, permissions=permissions)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str, int], Disk]]:
    """A maker of loop devices: the device, and the file behind it."""
    with contextlib.ExitStack() as stack:

        def make(name: str, size: int) -> Disk:
            file = tmp_path / name
            try:
                return stack.enter_context(loop_device(file, size)), file
            except NoLoopDevices as error:
                pytest.skip(f"this machine makes no loop devices: {error}")

        yield make


def test_block_devices_are_disks(daemon: Daemon, disk: Callable[[str, int], Disk]) -> None:
    first, file = disk("first", 40 * MIB)
    second, read_only = disk("second", 8 * MIB)
    read_only.write_bytes(b"known" + bytes(8 * MIB - 5))
    with open(second, "rb") as handle:
        # The loop device holds the old content.
        fcntl.ioctl(handle, 0x1261)
    os.chmod(second, 0o644)
    may = v1_pb2.LinuxSandboxSecurityContext(privileged=True)
    pod = Pod.run(daemon, linux=v1_pb2.LinuxPodSandboxConfig(security_context=may))
    container = pod.start(
        SHELL,
        SLEEP,
        devices=[device(first, "/dev/xvda"), device(second, "/dev/deep/er/xvdb", "r")],
    )
    sizes = "for d in xvda deep/er/xvdb; do n=$(cat /dev/$d | wc -c); echo $n; done"
    assert container.sh(sizes) == f"{40 * MIB}\n{8 * MIB}"
    assert (
        container.sh("head -c 5 /dev/deep/er/xvdb; stat -c ' %a' /dev/deep/er/xvdb") == "known 644"
    )
    denied = container.sh("(echo x > /dev/deep/er/xvdb) 2>&1 || true").lower()
    assert "not permitted" in denied or "read-only" in denied
    container.sh("printf written > /dev/xvda")
    container.sh("printf end | dd of=/dev/xvda bs=1M seek=39 conv=notrunc")
    daemon.client.stop_container(container.id, 0)
    daemon.client.remove_container(container.id)
    # What the guest held in memory is on the host's device now.
    with open(first, "rb") as handle:
        assert handle.read(7) == b"written"
        handle.seek(39 * MIB)
        assert handle.read(3) == b"end"
    # A disk of another size comes into a slot that had one, as a mount; a privileged container
    # mounts it, and what it writes into its file system stays.
    third, _ = disk("third", 20 * MIB)
    subprocess.run(["mkfs.ext4", "-q", third], check=True)
    again = pod.start(
        SHELL,
        SLEEP,
        name="again",
        mounts=[v1_pb2.Mount(container_path="/dev/block", host_path=third)],
        linux=v1_pb2.LinuxContainerConfig(
            security_context=v1_pb2.LinuxContainerSecurityContext(privileged=True)
        ),
    )
    assert again.sh("cat /dev/block | wc -c") == str(20 * MIB)
    again.sh("mkdir /mnt; mount -t ext4 /dev/block /mnt && echo kept > /mnt/file")
    daemon.client.remove_container(again.id)
    subprocess.run(["e2fsck", "-fn", third], check=True, stdout=subprocess.DEVNULL)
    shown = subprocess.run(["debugfs", "-R", "cat /file", third], capture_output=True, check=True)
    assert shown.stdout == b"kept\n"
    assert file.stat().st_size == 40 * MIB


def test_a_pod_has_few_slots_for_disks(daemon: Daemon, disk: Callable[[str, int], Disk]) -> None:
    made = [disk(f"d{n}", MIB)[0] for n in range(4)]
    pod = Pod.run(daemon)
    with pytest.raises(errors.ResourceExhausted, match="3 slots for block devices"):
        pod.create(SHELL, SLEEP, devices=[device(one, f"/dev/x{one[5:]}") for one in made])
    container = pod.start(
        SHELL, SLEEP, devices=[device(one, f"/dev/x{one[5:]}") for one in made[:3]]
    )
    assert len(container.sh("ls -d /dev/xloop*").split()) == 3


def test_cdi_devices(daemon: Daemon, tmp_path: Path) -> None:
    """By a specification that carries the daemon's name, where all on the host would see it."""
    (tmp_path / "lib").write_text("library")
    kind = f"thaw-{daemon.instance}.test/device"
    edits = {
        "env": ["DEVICE=first"],
        "mounts": [{"hostPath": str(tmp_path), "containerPath": "/opt/x", "options": ["ro"]}],
    }
    node = {"deviceNodes": [{"path": "/dev/kmsg"}]}
    devices = [{"name": "0", "containerEdits": edits}, {"name": "1", "containerEdits": node}]
    place = Path(f"/var/run/cdi/thaw-{daemon.instance}.json")
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps({"cdiVersion": "0.6.0", "kind": kind, "devices": devices}))
    try:
        pod = Pod.run(daemon)
        asked = [v1_pb2.CDIDevice(name=f"{kind}=0")]
        container = pod.start(SHELL, SLEEP, CDI_devices=asked, env={"DEVICE": "none"})
        with pytest.raises(errors.Unimplemented, match="deviceNodes"):
            pod.create(SHELL, SLEEP, name="b", CDI_devices=[v1_pb2.CDIDevice(name=f"{kind}=1")])
    finally:
        place.unlink()
    assert container.sh("echo $DEVICE; cat /opt/x/lib") == "first\nlibrary"
    assert "read-only" in container.sh("(echo > /opt/x/y) 2>&1 || true").lower()
    assert len(container.status().mounts) == 0


def test_devices_that_every_kernel_has(daemon: Daemon, tmp_path: Path) -> None:
    pod = Pod.run(daemon)
    container = pod.start(
        SHELL,
        SLEEP,
        devices=[device("/dev/null", "/dev/nothing"), device("/dev/fuse", "")],
        mounts=[v1_pb2.Mount(container_path="/dev/zeroes", host_path="/dev/zero")],
    )
    assert container.sh("echo x > /dev/nothing; head -c 3 /dev/zeroes | od -An -tx1") == "00 00 00"
    container.sh("exec 3<> /dev/fuse")
    for name in ("full", "random", "urandom", "tty", "net/tun"):
        made = pod.start(SHELL, SLEEP, name=name[:3], devices=[device(f"/dev/{name}", "/dev/x")])
        node = os.stat(f"/dev/{name}").st_rdev
        numbers = f"{os.major(node):x} {os.minor(node):x}"
        assert made.sh("stat -c '%F %t %T' /dev/x") == f"character special file {numbers}"
        made.sh("exec 3< /dev/x" if name != "tty" else "test -c /dev/x")
    file = tmp_path / "file"
    file.touch()
    for wanted, error, words in (
        (device("/dev/loop-control", "/dev/a"), errors.Unimplemented, "is the host's"),
        (device("/dev/none", "/dev/a"), errors.FailedPrecondition, "cannot be used"),
        (device(str(file), "/dev/a"), errors.FailedPrecondition, "is no device"),
        (device("/dev/null", "/etc/null"), errors.InvalidArgument, "below /dev"),
        (device("/dev/null", "/dev/../x"), errors.InvalidArgument, "below /dev"),
        (device("/dev/null", "/dev/a", "rwx"), errors.InvalidArgument, "permissions"),
        (device("dev/null", "/dev/a"), errors.InvalidArgument, "not absolute"),
    ):
        with pytest.raises(error, match=words):
            pod.create(SHELL, SLEEP, name="other", devices=[wanted])
