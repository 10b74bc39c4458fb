"""Security contexts, seen from inside: seccomp in all modes, users and groups, capabilities, paths,
kernel settings; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP, WEBAPP
from hostlib.errors import ThawError

Profile = v1_pb2.SecurityProfile
Sandbox = v1_pb2.LinuxPodSandboxConfig


def context(**fields: Any) -> v1_pb2.LinuxContainerConfig:
    """A container's `linux` with this security context."""
    return v1_pb2.LinuxContainerConfig(
        security_context=v1_pb2.LinuxContainerSecurityContext(**fields)
    )


def start(pod: Pod, name: str, image: str = SHELL, **fields: Any) -> Container:
    return pod.start(image, SLEEP, name=name, linux=context(**fields))


def user(number: int) -> v1_pb2.Int64Value:
    return v1_pb2.Int64Value(value=number)


def localhost(path: Path) -> v1_pb2.SecurityProfile:
    return Profile(profile_type=Profile.Localhost, localhost_ref=str(path))


def proc(container: Container, field: str) -> str:
    """A field of /proc/self/status of an exec, and of the container's own process: the same."""
    texts = {container.sh(f"grep ^{field}: /proc/{pid}/status") for pid in ("self", "1")}
    assert len(texts) == 1, texts
    return texts.pop().partition(":")[2].strip()


def errnos(container: Container, *calls: tuple[int, ...]) -> list[int]:
    """The errno of each system call, by number and arguments; 0 where it succeeds."""
    script = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        f"for call in {calls!r}: print(ctypes.get_errno() if libc.syscall(*call) < 0 else 0)"
    )
    argv = ["/usr/bin/python3", "-ISc", script]
    answer = container.pod.daemon.client.exec_sync(container.id, argv)
    assert answer.exit_code == 0, answer
    return [int(one) for one in answer.stdout.split()]


UNSHARE, CHMOD, KEYCTL, CLONE3, MSEAL, FCHMODAT2, NEWEST, CLONE_NEWUSER = (
    *(272, 90, 250, 435, 462, 452, 500),
    0x10000000,
)


def test_seccomp_profiles(daemon: Daemon, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [
                    {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO"},
                    {
                        "names": ["unshare"],
                        "action": "SCMP_ACT_ERRNO",
                        "errnoRet": 71,
                        "args": [{"index": 0, "value": CLONE_NEWUSER, "op": "SCMP_CMP_EQ"}],
                        "excludes": {"caps": ["CAP_SYS_ADMIN"]},
                    },
                    {"names": ["sethostname"], "action": "SCMP_ACT_KILL_PROCESS"},
                    {"names": ["fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 72},
                ],
            }
        )
    )
    pod = Pod.run(daemon)
    new_user = (UNSHARE, CLONE_NEWUSER)
    plain = start(pod, "nothing", WEBAPP)
    assert proc(plain, "Seccomp") == "0"
    assert errnos(plain, new_user) == [0]
    free = start(pod, "unconfined", seccomp=Profile(profile_type=Profile.Unconfined))
    assert proc(free, "Seccomp") == "0"

    usual = start(pod, "default", WEBAPP, seccomp=Profile())
    assert (proc(usual, "Seccomp"), proc(usual, "Seccomp_filters")) == ("2", "1")
    keys = (KEYCTL, 0, 0, 0, 0, 0)
    calls = [new_user, keys, (CLONE3, 0, 0), (MSEAL, 0, 0, 0), (NEWEST,)]
    assert errnos(usual, *calls) == [1, 1, 38, 0, 38]
    # What a container may do decides over the default profile, too.
    admin = v1_pb2.Capability(add_capabilities=["SYS_ADMIN"])
    strong = start(pod, "admin", WEBAPP, seccomp=Profile(), capabilities=admin)
    assert errnos(strong, new_user, keys) == [0, 1]

    # The filter is loaded with rights and without, and nobody keeps what that took.
    variants: dict[str, dict[str, Any]] = {
        "localhost": {},
        "user": {"run_as_user": user(1000)},
        "no-new-privs": {"run_as_user": user(1000), "no_new_privs": True},
        "none": {"capabilities": v1_pb2.Capability(drop_capabilities=["ALL"])},
    }
    for name, fields in variants.items():
        made = start(pod, name, WEBAPP, seccomp=localhost(profile), **fields)
        assert proc(made, "Seccomp") == "2"
        assert int(proc(made, "CapPrm"), 16) & 1 << 21 == 0
        assert proc(made, "NoNewPrivs") == str(int(fields.get("no_new_privs", False)))
        said = errnos(made, (CHMOD, 0, 0), new_user, (FCHMODAT2, 0, 0, 0, 0))
        assert said == [1, 71, 72]
    old = start(pod, "by-path", seccomp_profile_path=f"localhost/{profile}")
    assert "not permitted" in old.sh("chmod 700 /tmp 2>&1 || true")
    killed = daemon.client.exec_sync(old.id, ["/bin/sh", "-c", "hostname x"])
    assert killed.exit_code == 128 + 31, killed
    assert proc(start(pod, "old", seccomp_profile_path="runtime/default"), "Seccomp") == "2"


def test_privileged_containers(daemon: Daemon, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_KILL"}')
    plain = Pod.run(daemon)
    with pytest.raises(ThawError, match="not made for privileged"):
        start(plain, "privileged", privileged=True)
    sandbox = v1_pb2.LinuxSandboxSecurityContext(privileged=True)
    pod = Pod.run(daemon, linux=Sandbox(security_context=sandbox))
    made = start(
        pod,
        "privileged",
        privileged=True,
        seccomp=localhost(profile),
        masked_paths=["/proc/kcore"],
        readonly_paths=["/proc/sys"],
    )
    assert proc(made, "Seccomp") == "0"
    assert proc(made, "CapEff") == "000001ffffffffff"
    made.sh("echo 5 > /proc/sys/vm/swappiness; test -w /sys/kernel; mount -t tmpfs x /tmp")


def test_users_and_groups(daemon: Daemon) -> None:
    pod = Pod.run(daemon)

    def check(name: str, uid: int, gid: int, groups: list[int], **fields: Any) -> None:
        made = start(pod, name, **fields)
        told = made.status().user.linux
        assert (told.uid, told.gid, sorted(told.supplemental_groups)) == (uid, gid, groups)
        assert made.sh("id -u; id -g").split() == [str(uid), str(gid)]
        assert proc(made, "Groups").split() == [str(one) for one in groups]

    strict = {"supplemental_groups_policy": v1_pb2.Strict}
    # The image's /etc/group has app, 1000, in the group staff, 50.
    check("root", 0, 0, [0])
    check("merge", 1000, 1000, [50, 1000, 1234], run_as_user=user(1000), supplemental_groups=[1234])
    check(
        "strict",
        1000,
        1000,
        [1000, 1234],
        run_as_user=user(1000),
        supplemental_groups=[1234],
        **strict,
    )
    group = {"run_as_user": user(1000), "run_as_group": user(77)}
    check("group", 1000, 77, [50, 77], **group)
    check("strict-group", 1000, 77, [77], **group, **strict)
    check("name", 1000, 1000, [50, 1000], run_as_username="app")
    check("stranger", 4242, 0, [0, 9], run_as_user=user(4242), supplemental_groups=[9, 0])
    # The image's own user, app. What a container does to its files later changes no exec.
    image = pod.start(WEBAPP, SLEEP, name="image")
    assert list(image.status().user.linux.supplemental_groups) == [1000, 50]
    changer = start(pod, "changer", run_as_username="root")
    changer.sh("sed -i 's/^root:x:0:0/root:x:4:4/' /etc/passwd && grep -q root:x:4 /etc/passwd")
    assert changer.sh("id -u") == "0"
    with pytest.raises(ThawError, match="nobody-knows") as caught:
        start(pod, "unknown", run_as_username="nobody-knows")
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "unknown" not in {one.metadata.name for one in daemon.client.containers()}


def test_users_survive_the_daemon(durable: Daemon) -> None:
    pod = Pod.run(durable)
    made = start(pod, "main", run_as_user=user(1000), supplemental_groups=[1234], seccomp=Profile())
    before = made.status().user
    assert before.linux.uid == 1000
    durable.kill()
    durable.start()
    assert made.status().user == before
    assert "1234" in made.sh("id -G").split()
    assert made.sh("grep ^Seccomp: /proc/self/status").endswith("2")


def test_capabilities_and_privileges(daemon: Daemon) -> None:
    pod = Pod.run(daemon)

    def sets(name: str, add: list[str], drop: list[str], **fields: Any) -> dict[str, int]:
        ambient = fields.pop("ambient", [])
        caps = v1_pb2.Capability(
            add_capabilities=add, drop_capabilities=drop, add_ambient_capabilities=ambient
        )
        made = start(pod, name, capabilities=caps, **fields)
        names = ("CapEff", "CapBnd", "CapAmb")
        return {one: int(proc(made, one), 16) for one in names}

    usual = 0xA80425FB
    assert sets("usual", [], []) == {"CapEff": usual, "CapBnd": usual, "CapAmb": 0}
    assert sets("none", [], ["ALL"])["CapBnd"] == 0
    assert sets("one", ["NET_ADMIN"], ["ALL"])["CapEff"] == 1 << 12
    assert sets("less", [], ["CHOWN", "cap_kill"])["CapEff"] == usual & ~(1 << 0 | 1 << 5)
    raised = sets("ambient", [], ["ALL"], ambient=["NET_RAW"], run_as_user=user(1000))
    assert raised == {"CapEff": 1 << 13, "CapBnd": 1 << 13, "CapAmb": 1 << 13}
    assert sets("user", [], [], run_as_user=user(1000))["CapEff"] == 0
    held = start(pod, "held", no_new_privs=True)
    assert proc(held, "NoNewPrivs") == "1"


def test_paths_and_root(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    closed = start(
        pod,
        "closed",
        readonly_rootfs=True,
        masked_paths=["/proc/kcore", "/proc/acpi", "/proc/keys", "/no/such"],
        readonly_paths=["/proc/sys", "/proc/bus"],
    )
    says = "; ".join(
        f"({one}) 2>&1 || true"
        for one in ("touch /x", "echo 5 > /proc/sys/vm/swappiness", "wc -c < /proc/keys")
    )
    told = closed.sh(says).lower()
    assert told.count("read-only file system") == 2
    assert told.endswith("\n0")
    # procMount: Unmasked is no paths at all.
    opened = start(pod, "opened", capabilities=v1_pb2.Capability(add_capabilities=["SYS_ADMIN"]))
    assert int(opened.sh("wc -c < /proc/keys")) >= 0
    opened.sh("echo 7 > /proc/sys/vm/swappiness; touch /x")
    assert opened.sh("cat /proc/sys/vm/swappiness") == "7"


def test_kernel_settings(daemon: Daemon) -> None:
    pod = Pod.run(
        daemon,
        linux=Sandbox(
            sysctls={
                "net.core.somaxconn": "1234",
                "net.ipv4.ip_unprivileged_port_start": "80",
                "net/ipv4/conf/eth0/accept_source_route": "1",
                "kernel.shm_rmid_forced": "1",
                "kernel.msgmax": "8193",
                "vm.max_map_count": "262144",
            }
        ),
    )
    own = v1_pb2.NamespaceOption(pid=v1_pb2.CONTAINER, ipc=v1_pb2.CONTAINER)
    for made in (start(pod, "shared"), start(pod, "own", namespace_options=own)):
        read = "cd /proc/sys; cat net/core/somaxconn net/ipv4/ip_unprivileged_port_start"
        read += " net/ipv4/conf/eth0/accept_source_route kernel/shm_rmid_forced kernel/msgmax"
        assert made.sh(f"{read} vm/max_map_count").split() == [
            "1234",
            "80",
            "1",
            "1",
            "8193",
            "262144",
        ]
    for name, value, says in (
        ("net.core.nothing", "1", "no such setting"),
        ("net.core.somaxconn", "many", "refuses"),
        ("kernel.hostname", "x", "hostname"),
        ("net..x", "1", "malformed"),
        ("kernel.core_pattern", "|/bin/sh", "pipe"),
    ):
        with pytest.raises(ThawError, match=says) as caught:
            Pod.run(daemon, linux=Sandbox(sysctls={name: value}))
        assert caught.value.code == "INVALID_ARGUMENT", name


REFUSED: Final[list[tuple[dict[str, Any], str, str]]] = [
    ({"selinux_options": {"level": "s0:c1,c2"}}, "UNIMPLEMENTED", "SELinux level"),
    ({"selinux_options": {"user": "u"}}, "UNIMPLEMENTED", "SELinux user"),
    ({"selinux_options": {"role": "r"}}, "UNIMPLEMENTED", "SELinux role"),
    ({"selinux_options": {"type": "t"}}, "UNIMPLEMENTED", "SELinux type"),
    ({"apparmor": {"profile_type": 2, "localhost_ref": "mine"}}, "UNIMPLEMENTED", "mine"),
    ({"apparmor_profile": "localhost/mine"}, "UNIMPLEMENTED", "mine"),
    ({"apparmor_profile": "nonsense"}, "INVALID_ARGUMENT", "nonsense"),
    ({"seccomp": {"profile_type": 2}}, "INVALID_ARGUMENT", "absolute"),
    ({"seccomp": {"profile_type": 2, "localhost_ref": "/no/such"}}, "NOT_FOUND", "/no/such"),
    ({"seccomp": {"profile_type": 2, "localhost_ref": "/tmp"}}, "INVALID_ARGUMENT", "regular"),
    (
        {"seccomp": {"profile_type": 2, "localhost_ref": "/etc/passwd"}},
        "INVALID_ARGUMENT",
        "JSON",
    ),
    ({"seccomp": {"profile_type": 7}}, "INVALID_ARGUMENT", "profile_type"),
    ({"seccomp_profile_path": "mine"}, "INVALID_ARGUMENT", "mine"),
    ({"run_as_user": {"value": -1}}, "INVALID_ARGUMENT", "run_as_user"),
    ({"supplemental_groups": [-1]}, "INVALID_ARGUMENT", "supplemental_groups"),
    ({"supplemental_groups_policy": 7}, "INVALID_ARGUMENT", "policy"),
    ({"run_as_user": {"value": 1}, "run_as_username": "a"}, "INVALID_ARGUMENT", "both"),
    ({"run_as_username": "a:b"}, "INVALID_ARGUMENT", "user name"),
]


def test_what_is_refused(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    for fields, code, says in REFUSED:
        with pytest.raises(ThawError, match=says) as caught:
            pod.create(SHELL, SLEEP, linux=context(**fields))
        assert caught.value.code == code, fields
    assert not daemon.client.containers(pod.id)


def test_sandboxes_that_are_refused(daemon: Daemon) -> None:
    for fields, code in (
        ({"selinux_options": {"level": "s0"}}, "UNIMPLEMENTED"),
        ({"apparmor": {"profile_type": 2, "localhost_ref": "mine"}}, "UNIMPLEMENTED"),
        # Nothing of the pod's own runs with these; what nobody could run with is refused.
        ({"seccomp": {"profile_type": 2}}, "INVALID_ARGUMENT"),
        ({"seccomp_profile_path": "mine"}, "INVALID_ARGUMENT"),
        ({"run_as_user": {"value": 1 << 40}}, "INVALID_ARGUMENT"),
        ({"run_as_group": {"value": 1 << 40}}, "INVALID_ARGUMENT"),
        ({"supplemental_groups": [-1]}, "INVALID_ARGUMENT"),
        ({"supplemental_groups_policy": 7}, "INVALID_ARGUMENT"),
    ):
        security = v1_pb2.LinuxSandboxSecurityContext(**fields)
        with pytest.raises(ThawError) as caught:
            Pod.run(daemon, linux=Sandbox(security_context=security))
        assert caught.value.code == code
