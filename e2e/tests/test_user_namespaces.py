"""Pods with user namespaces of their own: who is who inside, whose files are whose, here and on the
host, and what root inside cannot do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from cri.api import v1_pb2
from demo import oci
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import NGINX, SHELL, SLEEP, WEBAPP
from e2e.harness.registry import Registry
from hostlib import linux
from hostlib.errors import ThawError

FIRST: Final = 0x20000
LENGTH: Final = 65536
NOBODY: Final = "65534"


def mapping(first: int = FIRST, length: int = LENGTH, inside: int = 0) -> v1_pb2.IDMapping:
    return v1_pb2.IDMapping(host_id=first, container_id=inside, length=length)


def options(**more: Any) -> v1_pb2.NamespaceOption:
    """A pod's namespaces, as the kubelet asks for them with `hostUsers: false`."""
    users = v1_pb2.UserNamespace(mode=v1_pb2.POD, uids=[mapping()], gids=[mapping()])
    fields: dict[str, Any] = {"pid": v1_pb2.CONTAINER, "userns_options": users}
    return v1_pb2.NamespaceOption(**(fields | more))


def run(daemon: Daemon, *, sysctls: dict[str, str] | None = None, **security: Any) -> Pod:
    context = v1_pb2.LinuxSandboxSecurityContext(**({"namespace_options": options()} | security))
    return Pod.run(
        daemon, linux=v1_pb2.LinuxPodSandboxConfig(security_context=context, sysctls=sysctls)
    )


def context(**security: Any) -> v1_pb2.LinuxContainerConfig:
    return v1_pb2.LinuxContainerConfig(
        security_context=v1_pb2.LinuxContainerSecurityContext(
            **({"namespace_options": options()} | security)
        )
    )


def start(
    pod: Pod, name: str, image: str = SHELL, command: Sequence[str] = SLEEP, **more: Any
) -> Container:
    mounts = more.pop("mounts", [])
    tty = more.pop("tty", False)
    devices = more.pop("devices", [])
    return pod.start(
        image, command, name=name, mounts=mounts, tty=tty, devices=devices, linux=context(**more)
    )


def adds(*names: str) -> v1_pb2.Capability:
    return v1_pb2.Capability(add_capabilities=names)


def mapped(path: str, host: Path, **more: Any) -> v1_pb2.Mount:
    return v1_pb2.Mount(
        container_path=path,
        host_path=str(host),
        **({"uidMappings": [mapping()], "gidMappings": [mapping()]} | more),
    )


def mapped_image(ref: str, first: int) -> v1_pb2.Mount:
    line = [mapping(first)]
    image = v1_pb2.ImageSpec(image=ref)
    return v1_pb2.Mount(
        container_path="/x", image=image, readonly=True, uidMappings=line, gidMappings=line
    )


def said(container: Container, script: str) -> str:
    """What a script says, errors too, in lower case."""
    return container.sh(f"({script}) 2>&1 || true").lower()


def python(container: Container, script: str) -> str:
    answer = container.pod.daemon.client.exec_sync(
        container.id, ["/usr/bin/python3", "-ISc", script]
    )
    assert answer.exit_code == 0, answer
    return answer.stdout.decode().strip()


def test_a_pods_containers_share_its_user_namespace(daemon: Daemon) -> None:
    pod = run(daemon)
    first = start(pod, "first")
    for kind in ("uid_map", "gid_map"):
        for pid in ("self", "1"):
            assert first.sh(f"cat /proc/{pid}/{kind}").split() == ["0", str(FIRST), str(LENGTH)]
    assert first.sh("id -u; id -g; cat /proc/self/setgroups").split() == ["0", "0", "allow"]
    joined = options(pid=v1_pb2.POD)
    second = start(pod, "second", namespace_options=joined)
    third = start(pod, "third", namespace_options=joined, run_as_user={"value": 1000})
    target = options(pid=v1_pb2.TARGET, target_id=first.id)
    fourth = start(pod, "fourth", namespace_options=target)
    # What says nothing of it is in the pod's all the same.
    fifth = pod.start(SHELL, SLEEP, name="fifth")
    everyone = (first, second, third, fourth, fifth)
    spaces = {each.sh("readlink /proc/self/ns/user") for each in everyone}
    assert len(spaces) == 1
    pids = [each.sh("readlink /proc/self/ns/pid") for each in everyone]
    assert pids[1] == pids[2] and pids[0] == pids[3] and len(set(pids)) == 3
    assert second.sh("cat /proc/1/comm") == "pause"
    assert "Uid:\t65535\t" in second.sh("cat /proc/1/status")
    assert "denied" in said(second, "ls /proc/1/root/")
    assert third.sh("id -u; cat /proc/1/uid_map").split()[:2] == ["1000", "0"]
    told = third.status().user.linux
    assert (told.uid, told.gid) == (1000, 1000)
    # One's end is its own; the pod's PID 1 reaps what is left.
    second.pod.daemon.client.stop_container(second.id, 0)
    assert second.wait().exit_code == 137
    assert third.status().state == v1_pb2.CONTAINER_RUNNING

    shown = daemon.client.pod_status(pod.id).status.linux.namespaces.options
    assert shown == options()
    # Others are as they were.
    plain = Pod.run(daemon).start(SHELL, SLEEP)
    assert plain.sh("cat /proc/self/uid_map").split() == ["0", "0", "4294967295"]
    assert plain.sh("readlink /proc/self/ns/user") not in spaces
    assert plain.sh("stat -c %u:%g / /dev/null /etc/hosts").split() == ["0:0"] * 3


def test_what_a_container_is_made_of_belongs_to_root_inside(daemon: Daemon) -> None:
    pod = run(daemon)
    made = start(
        pod,
        "main",
        WEBAPP,
        run_as_user={"value": 0},
        devices=[v1_pb2.Device(host_path="/dev/fuse", container_path="/dev/sub/fuse")],
    )
    paths = "/ /usr/bin/busybox /root /dev /dev/null /dev/pts /dev/shm /dev/mqueue /dev/sub"
    paths += " /dev/sub/fuse /etc/hosts /etc/resolv.conf /etc/hostname /run/thaw/generation"
    paths += " /proc/1/status /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmax"
    owners = made.sh(f"stat -Lc '%n %u:%g' {paths}").splitlines()
    assert [line for line in owners if not line.endswith(" 0:0")] == []
    assert made.sh("stat -c %u:%g /home/app /dev/pts/ptmx").split() == ["1000:1000", "0:0"]
    # The kernel's own, not the pod's.
    assert made.sh("stat -c %u /proc/sys/vm/swappiness") == NOBODY
    assert made.sh("cat /proc/sys/kernel/random/boot_id /run/thaw/generation | wc -l") == "2"

    made.sh("echo x > /root/new; chown 7:8 /root/new; touch /home/app/own; mkdir -m 700 /mine")
    assert made.sh("stat -c %u:%g /root/new /home/app/own /mine").split() == ["7:8", "0:0", "0:0"]
    made.sh("rm -r /home/app && ! ls -d /home/app && echo changed >> /etc/passwd")
    assert "operation not permitted" in said(made, "mknod /dev/x c 1 3")
    made.sh("echo 0 > /dev/null; head -c 1 /dev/urandom > /dev/zero; echo y > /dev/stdout")
    assert "no such file" in said(made, "ls /dev/x")
    assert "invalid argument" in said(made, f"chown {LENGTH} /root/new")
    # A set-id program, and one with capabilities, of the image's or one's own.
    made.sh("cp -L /usr/bin/python3 /usr/bin/as-root && chmod 4755 /usr/bin/as-root")
    asks = "import os; os.setgid(9); os.setuid(1000); os.execv('/usr/bin/as-root', "
    asks += "['x', '-ISc', 'import os; print(os.getuid(), os.geteuid())'])"
    assert python(made, asks) == "1000 0"
    caps = "import os; os.setxattr('/usr/bin/as-root', 'security.capability', bytes.fromhex("
    caps += "'0100000200040000000000000000000000000000'))"
    made.sh("chmod 755 /usr/bin/as-root")
    python(made, caps)
    bind = 'import socket; socket.socket().bind(("127.0.0.1", 81)); print("bound")'
    asks = "import os; os.setgid(9); os.setuid(1000); os.execv('/usr/bin/as-root', "
    asks += f"['x', '-ISc', '{bind}'])"
    assert python(made, asks) == "bound"

    assert "70000 is not mapped" in refused(pod, run_as_user={"value": 70000})
    assert "group 70001" in refused(pod, supplemental_groups=[70001])
    user = start(pod, "user", run_as_user={"value": 1000}, supplemental_groups=[1234])
    assert set(user.sh("id -G").split()) == {"50", "1000", "1234"}
    assert user.sh("stat -Lc %u /dev/stdout; echo z > /dev/stderr").split() == ["1000"]
    script = "stat -c %u:%g $(tty)"
    terminal = start(pod, "terminal", command=("/bin/sh", "-c", script), tty=True)
    assert terminal.wait().exit_code == 0
    assert terminal.output().split() == ["0:5"]


def refused(pod: Pod, code: str = "INVALID_ARGUMENT", **fields: Any) -> str:
    with pytest.raises(ThawError) as caught:
        start(pod, "refused", **fields)
    assert caught.value.code == code
    return str(caught.value)


def test_capabilities_count_over_the_pods_namespaces(daemon: Daemon) -> None:
    pod = run(daemon, sysctls={"net.core.somaxconn": "1234", "kernel.shm_rmid_forced": "1"})
    server = start(pod, "server", NGINX, ())
    assert "served from a microVM" in pod.get().text
    assert server.sh("cat /proc/sys/net/core/somaxconn") == "1234"
    usual = start(pod, "usual")
    assert "1 packets received" in usual.sh("ping -c 1 127.0.0.1")
    assert "denied" in said(usual, "ip link add dummy7 type dummy") or "not permitted" in said(
        usual, "ip link add dummy7 type dummy"
    )
    assert usual.sh("cat /sys/class/net/eth0/address; ls /sys/class/net").split()[1:] == [
        "eth0",
        "lo",
    ]
    # As this pod's user, all of the namespaces that are the pod's.
    strong = start(pod, "strong", capabilities=adds("NET_ADMIN", "SYS_ADMIN"))
    strong.sh("ip addr add 10.99.0.1/32 dev lo && echo 999 > /proc/sys/net/core/somaxconn")
    assert usual.sh("cat /proc/sys/net/core/somaxconn") == "999"
    strong.sh("hostname renamed && mkdir /a && mount -t tmpfs x /a && mount -t proc x /a")
    assert usual.sh("hostname") == "renamed"
    strong.sh("mount -t sysfs -o ro x /a && mount -t mqueue x /a && mount -t devpts x /a")
    own = start(
        pod,
        "own",
        namespace_options=options(ipc=v1_pb2.CONTAINER),
        capabilities=adds("SYS_ADMIN"),
    )
    assert own.sh("cat /proc/sys/kernel/shm_rmid_forced; stat -c %u /dev/shm").split() == ["1", "0"]
    own.sh("echo 8000 > /proc/sys/kernel/msgmax")
    usual.sh("echo shared > /dev/shm/file")
    assert strong.sh("stat -c %u /dev/shm/file; cat /dev/shm/file").split() == ["0", "shared"]
    assert "no such file" in said(own, "cat /dev/shm/file")


def test_root_inside_is_nobody_in_the_guest(daemon: Daemon, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o700)
    (secret / "file").write_text("root's")
    (secret / "file").chmod(0o600)
    pod = run(daemon)
    everything = adds("ALL")
    made = start(
        pod,
        "all",
        WEBAPP,
        run_as_user={"value": 0},
        capabilities=everything,
        mounts=[v1_pb2.Mount(container_path="/secret", host_path=str(secret))],
    )
    assert made.sh("grep CapEff /proc/self/status").split()[1] == "000001ffffffffff"
    for script in (
        "mknod /tmp/sda b 8 0",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo b > /proc/sysrq-trigger",
        "echo 0 > /sys/kernel/mm/lru_gen/enabled",
        "mount -t ext4 /dev/sda /a",
        "mount -t 9p -o trans=virtio share /a",
        "mount -t squashfs /dev/sda /a",
        "cat /secret/file",
        "ls /secret",
        "echo 1 > /sys/fs/cgroup/cgroup.procs",
        "date -s 2020-01-01",
        "echo -900 > /proc/self/oom_score_adj",
    ):
        told = said(made, f"mkdir -p /a; {script}")
        words = ("not permitted", "denied", "read-only", "no such", "can't open", "failed")
        assert any(one in told for one in words), (script, told)
    # Of the guest there is no more than the container: no other process, no other root.
    assert made.sh("ls -d /proc/[0-9]* | wc -l; ls /run").split()[1:] == ["thaw"]
    told = made.sh(
        "grep -E ' /run/thaw/(layers|scratch|share|rootfs)' /proc/self/mountinfo || true"
    )
    assert told == ""
    seen = "import ctypes, os; print(os.listxattr('/'), ctypes.CDLL(None).reboot(0x89abcdef))"
    assert python(made, seen).endswith("-1")
    # Further user namespaces are one's own to make.
    nested = "import ctypes; print(ctypes.CDLL(None).unshare(0x10020000))"
    assert python(made, nested) == "0"


def test_privileged_containers(daemon: Daemon) -> None:
    made = start(run(daemon, privileged=True), "main", privileged=True)
    assert made.sh("cat /proc/self/uid_map").split()[1] == str(FIRST)
    assert made.sh("grep CapEff /proc/self/status").split()[1] == "000001ffffffffff"
    made.sh("mkdir /sys/fs/cgroup/below && rmdir /sys/fs/cgroup/below")
    made.sh("mkdir /a && mount -t tmpfs x /a && ip link add dummy7 type dummy")
    assert "denied" in said(made, "echo 5 > /proc/sys/vm/swappiness")


class Volumes:
    """Volumes of every kind, with files of root's and of user 1000, group 4242."""

    def __init__(self, folder: Path) -> None:
        self.host = folder / "host"
        self.file = folder / "file"
        self.disk = folder / "pods/uid/volumes/kubernetes.io~empty-dir/disk"
        self.memory = folder / "pods/uid/volumes/kubernetes.io~empty-dir/memory"
        self.published = folder / "pods/uid/volumes/kubernetes.io~configmap/map"
        for each in (self.host, self.disk, self.memory, self.published / "..1"):
            each.mkdir(parents=True)
        for each in (self.host, self.disk):
            each.chmod(0o2770)
            os.chown(each, 0, 4242)
        (self.host / "roots").write_text("root's")
        (self.host / "users").write_text("user's")
        (self.host / "users").chmod(0o600)
        os.chown(self.host / "users", 1000, 4242)
        os.chown(self.host / "roots", 0, 0)
        (self.host / "strangers").write_text("")
        os.chown(self.host / "strangers", LENGTH + 5, LENGTH + 5)
        self.file.write_text("")
        (self.published / "..1/key").write_text("value")
        os.chown(self.published / "..1/key", 0, 4242)
        (self.published / "..1/key").chmod(0o440)
        (self.published / "..data").symlink_to("..1")
        (self.published / "key").symlink_to("..data/key")


@pytest.fixture(scope="module")
def data(registry: Registry) -> str:
    low, high = oci.Layer(), oci.Layer()
    low.directory("model", 0o750, 1000, 4242).file("model/weights", "low")
    high.directory("model", 0o750, 1000, 4242).file("model/more", "high")
    return registry.push(oci.image([low, high], {}), "e2e/owned")


def test_volumes_have_their_owners(daemon: Daemon, tmp_path: Path, data: str) -> None:
    daemon.client.pull_image(data)
    volumes = Volumes(tmp_path)
    linux.mount("tmpfs", str(volumes.memory), "tmpfs", data="mode=2770,gid=4242,size=1m")
    try:
        check_volumes(daemon, volumes, data)
    finally:
        linux.umount(str(volumes.memory))


def check_volumes(daemon: Daemon, volumes: Volumes, data: str) -> None:
    pod = run(daemon)
    image: dict[str, Any] = {"image": v1_pb2.ImageSpec(image=data), "readonly": True}
    mounts = [
        mapped("/host", volumes.host),
        mapped("/read", volumes.host, readonly=True),
        mapped("/etc/file", volumes.file),
        mapped("/disk", volumes.disk),
        mapped("/memory", volumes.memory),
        mapped("/published", volumes.published, readonly=True),
        v1_pb2.Mount(container_path="/raw", host_path=str(volumes.host)),
        v1_pb2.Mount(container_path="/image", **image),
        v1_pb2.Mount(
            container_path="/part",
            image_sub_path="model",
            uidMappings=[mapping()],
            gidMappings=[mapping()],
            **image,
        ),
    ]
    root = start(pod, "root", mounts=mounts)
    user = start(
        pod, "user", mounts=mounts, run_as_user={"value": 1000}, supplemental_groups=[4242]
    )
    other = start(pod, "other", mounts=mounts, run_as_user={"value": 33})
    owners = root.sh(
        "stat -Lc '%u:%g' /host /read/users /host/roots /etc/file /disk /memory /published/key"
        " /image/model /image /part /part/weights"
    )
    assert owners.split() == [
        *("0:4242", "1000:4242", "0:0", "0:0", "0:4242", "0:4242", "0:4242"),
        *("1000:4242", "0:0", "1000:4242", "0:0"),
    ]
    assert root.sh("stat -c %u:%g /host/strangers") == f"{NOBODY}:{NOBODY}"
    assert (
        user.sh("cat /host/users /published/key /part/weights /part/more") == "user'svaluelowhigh"
    )
    for path in ("/host/users", "/published/key", "/part/weights", "/disk/x", "/memory/x"):
        assert "denied" in said(other, f"cat {path}"), path

    # New files are whose maker's they are, wherever they lie.
    for each, name in ((root, "r"), (user, "u")):
        each.sh(
            f"for d in /host /disk /memory; do echo {name} > $d/{name}; mkdir $d/{name}.d;"
            f" ln -s {name} $d/{name}.l; done; echo {name} >> /host/{name}"
        )
    for place in ("/host", "/disk", "/memory"):
        told = root.sh(f"cd {place}; stat -c %u:%g r r.d r.l u u.d u.l").split()
        assert told == ["0:4242"] * 3 + ["1000:4242"] * 3, place
        root.sh(f"cd {place}; chown 7:8 u; chown -h 9 u.l; chmod 4755 r; mv u u2; ln u2 u3")
        changed = root.sh(f"cd {place}; stat -c %u:%g u2 u3; stat -c %u:%a r; stat -c %u u.l")
        assert changed.split() == ["7:8", "7:8", "0:4755", "9"], place
    root.sh('echo more > /etc/file; test "$(cat /etc/file)" = more')
    on_host = {each.name: each.lstat() for each in volumes.host.iterdir()}
    found = {name: (one.st_uid, one.st_gid) for name, one in on_host.items()}
    assert found == {
        "roots": (0, 0),
        "users": (1000, 4242),
        "strangers": (LENGTH + 5, LENGTH + 5),
        **dict.fromkeys(("r", "r.d", "r.l"), (0, 4242)),
        "u2": (7, 8),
        "u3": (7, 8),
        "u.d": (1000, 4242),
        "u.l": (9, 4242),
    }
    assert on_host["r"].st_mode & 0o7777 == 0o4755
    assert (volumes.host / "r").read_text() == "r\nr\n"
    # Without mappings files are as they are outside: root's are nobody's.
    assert root.sh("stat -c %u:%g /raw") == f"{NOBODY}:{NOBODY}"
    assert "denied" in said(root, "ls /raw")
    assert not list(volumes.disk.iterdir()) and not list(volumes.memory.iterdir())


def test_mounts_that_cannot_be_mapped(daemon: Daemon, tmp_path: Path) -> None:
    pod = run(daemon)
    told = refused(pod, "FAILED_PRECONDITION", mounts=[mapped("/sys2", Path("/sys/kernel"))])
    assert "/sys/kernel" in told and "hostUsers" in told
    for fields, says in (
        ({"gidMappings": []}, "0 group mappings"),
        ({"uidMappings": [mapping(), mapping(1, 1)]}, "2 user mappings"),
        ({"uidMappings": [mapping(length=0)]}, "no range"),
        ({"uidMappings": [mapping(2**32 - 2)]}, "no range"),
    ):
        assert says in refused(pod, mounts=[mapped("/x", tmp_path, **fields)]), fields
    assert "pod's user namespace" in refused(pod, mounts=[mapped_image(SHELL, 1)])
    # Nothing of them is left, and a pod without a user namespace can have such mounts.
    assert not daemon.client.containers(pod.id)
    (tmp_path / "file").write_text("")
    volume = tmp_path / "pods/uid/volumes/kubernetes.io~empty-dir/one"
    volume.mkdir(parents=True)
    plain = Pod.run(daemon).start(
        SHELL, SLEEP, mounts=[mapped("/x", tmp_path), mapped("/y", volume)]
    )
    assert plain.sh("stat -c %u /x/file /y").split() == [str(FIRST)] * 2


@pytest.mark.parametrize(
    ("users", "says"),
    [
        ({"mode": v1_pb2.CONTAINER}, "CONTAINER"),
        ({"mode": v1_pb2.TARGET}, "TARGET"),
        ({"mode": v1_pb2.NODE, "uids": [mapping()]}, "without mappings"),
        ({"mode": v1_pb2.POD}, "0 user mappings"),
        ({"uids": [mapping()]}, "0 group mappings"),
        ({"uids": [mapping(), mapping()], "gids": [mapping()]}, "2 user mappings"),
        ({"uids": [mapping()], "gids": [mapping(inside=1)]}, "no group 0"),
        ({"uids": [mapping(length=0)], "gids": [mapping()]}, "no range of ids"),
    ],
)
def test_user_namespaces_that_are_refused(daemon: Daemon, users: dict[str, Any], says: str) -> None:
    with pytest.raises(ThawError, match=says) as caught:
        run(daemon, namespace_options={"userns_options": users})
    assert caught.value.code == "INVALID_ARGUMENT"
    assert not daemon.client.pods()


def test_a_containers_user_namespace_is_its_pods(daemon: Daemon) -> None:
    other = {"uids": [mapping(FIRST + 1)], "gids": [mapping()]}
    for pod, users in (
        (run(daemon), {"mode": v1_pb2.NODE}),
        (run(daemon), other),
        (Pod.run(daemon), options().userns_options),
    ):
        told = refused(pod, namespace_options={"userns_options": users})
        assert "is not its pod's" in told
    # Users and groups need not be mapped alike.
    apart = {"uids": [mapping(FIRST)], "gids": [mapping(FIRST * 2, 100000)]}
    pod = run(daemon, namespace_options={"userns_options": apart})
    made = start(pod, "main", namespace_options={"userns_options": apart})
    assert made.sh("cat /proc/self/gid_map; stat -c %u:%g /root").split() == [
        *("0", str(FIRST * 2), "100000", "0:0"),
    ]


def test_they_outlive_the_daemon(durable: Daemon, tmp_path: Path) -> None:
    pod = run(durable)
    made = start(pod, "main", mounts=[mapped("/host", tmp_path)])
    durable.kill()
    durable.start()
    assert made.sh("cat /proc/self/uid_map").split()[1] == str(FIRST)
    later = start(pod, "later", mounts=[mapped("/host", tmp_path)])
    later.sh("echo x > /host/later")
    assert (tmp_path / "later").stat().st_uid == 0
    assert later.sh("readlink /proc/self/ns/user") == made.sh("readlink /proc/self/ns/user")
    with pytest.raises(ThawError, match="/no/such/program"):
        start(pod, "missing", command=("/no/such/program",))
    durable.client.remove_container(later.id)
    durable.client.stop_container(made.id, 0)
