from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cri.api import v1_pb2 as v1
from cri.oci import spec as oci_spec
from cri.oci.capabilities import ALL, DEFAULT, capabilities
from cri.oci.devices import devices
from cri.oci.sysctls import normalized
from hostlib.devices import default_rules
from hostlib.errors import FailedPrecondition, InvalidArgument, ThawError
from images.model import ImageConfig

SHELL = ImageConfig(
    user="www:data",
    env=("PATH=/bin", "A=image"),
    entrypoint=("/entry",),
    cmd=("default",),
    working_dir="/srv",
)


def build(
    config: v1.ContainerConfig, image: ImageConfig = SHELL, pod: v1.PodSandboxConfig | None = None
) -> dict[str, Any]:
    pod = pod or v1.PodSandboxConfig()
    return oci_spec.build("c" * 64, pod, config, image, hostname="pod").spec


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ([], [], ["/entry", "default"]),
        ([], ["x"], ["/entry", "x"]),
        (["/c"], [], ["/c"]),
        (["/c"], ["x"], ["/c", "x"]),
    ],
)
def test_kubernetes_rule_of_command_and_args(
    command: list[str], args: list[str], expected: list[str]
) -> None:
    spec = build(v1.ContainerConfig(command=command, args=args))
    assert spec["process"]["args"] == expected


def test_nothing_to_run() -> None:
    with pytest.raises(InvalidArgument, match="no command"):
        build(v1.ContainerConfig(), ImageConfig())


def test_environment_is_merged() -> None:
    config = v1.ContainerConfig(tty=True, envs=[v1.KeyValue(key="A", value=b"\xc3\xa4=b")])
    env = build(config)["process"]["env"]
    assert env == ["PATH=/bin", "HOSTNAME=pod", "TERM=xterm", "A=ä=b"]


@pytest.mark.parametrize(("key", "value"), [("", b""), ("a=b", b""), ("a", b"\xff")])
def test_environment_that_is_refused(key: str, value: bytes) -> None:
    with pytest.raises(InvalidArgument):
        build(v1.ContainerConfig(envs=[v1.KeyValue(key=key, value=value)]))


def security(**more: Any) -> v1.ContainerConfig:
    context = v1.LinuxContainerSecurityContext(**more)
    return v1.ContainerConfig(linux=v1.LinuxContainerConfig(security_context=context))


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({}, "www:data"),
        ({"run_as_user": v1.Int64Value(value=0)}, "0"),
        ({"run_as_user": v1.Int64Value(value=7), "run_as_group": v1.Int64Value(value=8)}, "7:8"),
        ({"run_as_username": "joe"}, "joe"),
    ],
)
def test_user(context: dict[str, Any], expected: str) -> None:
    assert build(security(**context))["process"]["user"]["username"] == expected


def test_group_without_user() -> None:
    with pytest.raises(InvalidArgument, match="run_as_group"):
        build(security(run_as_group=v1.Int64Value(value=8)))


def test_working_dir() -> None:
    assert build(v1.ContainerConfig())["process"]["cwd"] == "/srv"
    assert build(v1.ContainerConfig(working_dir="/a/../b"))["process"]["cwd"] == "/b"
    with pytest.raises(InvalidArgument, match="not absolute"):
        build(v1.ContainerConfig(working_dir="a"))


def test_capabilities() -> None:
    def held(*args: Any, privileged: bool = False) -> set[str]:
        return set(capabilities(*args, privileged=privileged)["bounding"])

    assert held([], [], []) == DEFAULT
    assert held(["net_admin"], ["CAP_KILL"], []) == DEFAULT - {"CAP_KILL"} | {"CAP_NET_ADMIN"}
    assert held(["CHOWN"], ["ALL"], []) == {"CAP_CHOWN"}
    assert held(["ALL"], ["CHOWN"], []) == set(ALL) - {"CAP_CHOWN"}
    assert held([], [], [], privileged=True) == set(ALL)
    assert capabilities([], [], ["NET_RAW"], privileged=False)["ambient"] == ["CAP_NET_RAW"]
    with pytest.raises(InvalidArgument, match="FLY"):
        held(["FLY"], [], [])


def test_privileged_sees_all() -> None:
    config = security(privileged=True, masked_paths=["/proc/kcore"])
    with pytest.raises(FailedPrecondition, match="not made for privileged"):
        build(config)
    pod = v1.PodSandboxConfig()
    pod.linux.security_context.privileged = True
    spec = build(config, pod=pod)
    assert spec["linux"]["maskedPaths"] == []
    sys = next(each for each in spec["mounts"] if each["destination"] == "/sys")
    assert "rw" in sys["options"]
    assert "devices" not in spec["linux"]["resources"]
    assert build(v1.ContainerConfig())["linux"]["resources"]["devices"] == default_rules()


def test_mounts() -> None:
    config = v1.ContainerConfig(
        mounts=[
            v1.Mount(container_path="/etc/hosts", host_path="/h/hosts"),
            v1.Mount(
                container_path="/data/deep",
                host_path="/h/deep",
                readonly=True,
                image_sub_path="deep",
            ),
            v1.Mount(container_path="/data", host_path="/h/data", mount_options=["noexec"]),
            v1.Mount(container_path="/run", host_path="/h/run"),
        ]
    )
    built = oci_spec.build("c" * 64, v1.PodSandboxConfig(), config, SHELL, hostname="pod")
    mounts = built.spec["mounts"]
    paths = [each["destination"] for each in mounts]
    assert paths.count("/etc/hosts") == 1
    assert paths.index("/data") < paths.index("/data/deep")
    assert paths.index("/dev") < paths.index("/dev/shm")
    assert paths.index("/run/thaw/generation") < paths.index("/run")
    found = {each["destination"]: each for each in mounts}
    assert found["/etc/hosts"]["source"] == f"/run/thaw/share/{built.mounts[0].share}"
    assert "ro" in found["/data/deep"]["options"]
    assert "noexec" in found["/data"]["options"]
    assert [each.host_path for each in built.mounts] == [
        "/h/hosts",
        "/h/deep",
        "/h/data",
        "/h/run",
    ]
    assert len({each.share for each in built.mounts}) == 4


def test_folders_that_an_image_calls_volumes() -> None:
    image = dataclasses.replace(
        SHELL, volumes=("/data", "data/", "/a/../b", "/", "/dev", "/covered", "/run/x")
    )
    covered = v1.Mount(container_path="/covered", host_path="/h")
    mounts = build(v1.ContainerConfig(mounts=[covered]), image)["mounts"]
    found = [each["destination"] for each in mounts if each["type"] == "volume"]
    assert found == ["/b", "/data", "/run/x"]
    many = dataclasses.replace(SHELL, volumes=tuple(f"/v{n}" for n in range(129)))
    with pytest.raises(InvalidArgument, match="129 volumes"):
        build(v1.ContainerConfig(), many)


@pytest.mark.parametrize(
    ("mount", "error"),
    [
        ({"container_path": "", "host_path": "/a"}, InvalidArgument),
        ({"container_path": "/", "host_path": "/a"}, FailedPrecondition),
        ({"container_path": "/a", "host_path": "a"}, InvalidArgument),
        ({"container_path": "/a", "host_path": "/a", "propagation": 2}, FailedPrecondition),
        ({"container_path": "/a", "host_path": "/a", "mount_options": ["suid"]}, InvalidArgument),
        (
            {"container_path": "/a", "host_path": "/a", "recursive_read_only": True},
            InvalidArgument,
        ),
        ({"container_path": "/a", "image": v1.ImageSpec(image="x")}, InvalidArgument),
    ],
)
def test_mounts_that_are_refused(mount: dict[str, Any], error: type[ThawError]) -> None:
    with pytest.raises(error):
        build(v1.ContainerConfig(mounts=[v1.Mount(**mount)]))


def test_resources() -> None:
    resources = v1.LinuxContainerResources(
        cpu_period=100000,
        cpu_quota=50000,
        memory_limit_in_bytes=1 << 20,
        oom_score_adj=7,
        hugepage_limits=[v1.HugepageLimit(page_size="2MB", limit=0)],
    )
    spec = build(v1.ContainerConfig(linux=v1.LinuxContainerConfig(resources=resources)))
    assert spec["linux"]["resources"] == {
        "memory": {"limit": 1 << 20},
        "cpu": {"quota": 50000, "period": 100000},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "devices": default_rules(),
    }
    assert spec["process"]["oomScoreAdj"] == 7


@pytest.mark.parametrize(
    "context",
    [
        {"namespace_options": v1.NamespaceOption(pid=v1.NODE)},
        {"namespace_options": v1.NamespaceOption(network=v1.CONTAINER)},
        {"namespace_options": v1.NamespaceOption(ipc=v1.TARGET)},
        {"namespace_options": v1.NamespaceOption(target_id="x")},
        {"namespace_options": v1.NamespaceOption(userns_options=v1.UserNamespace(mode=v1.POD))},
        {"seccomp": v1.SecurityProfile(profile_type=v1.SecurityProfile.Localhost)},
        {"apparmor": v1.SecurityProfile(profile_type=v1.SecurityProfile.Localhost)},
        {"selinux_options": v1.SELinuxOption(type="x")},
        {"selinux_options": v1.SELinuxOption(level="s0")},
        {"apparmor_profile": "localhost/x"},
        {"run_as_user": v1.Int64Value(value=1), "run_as_username": "a"},
        {"supplemental_groups": [2**32 - 1]},
    ],
)
def test_security_that_is_refused(context: dict[str, Any]) -> None:
    with pytest.raises(ThawError) as caught:
        build(security(**context))
    assert caught.value.code in ("INVALID_ARGUMENT", "UNIMPLEMENTED")


def test_apparmors_default_is_no_profile() -> None:
    for kind in (v1.SecurityProfile.RuntimeDefault, v1.SecurityProfile.Unconfined):
        spec = build(security(apparmor=v1.SecurityProfile(profile_type=kind)))
        assert "apparmorProfile" not in spec["process"]


def test_groups_of_the_image() -> None:
    policy = {"supplemental_groups_policy": v1.Strict}
    assert build(security())["process"]["user"]["imageGroups"] is True
    user = build(security(supplemental_groups=[5], **policy))["process"]["user"]
    assert (user["imageGroups"], user["additionalGids"]) == (False, [5])


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (None, None),
        (v1.NamespaceOption(pid=v1.CONTAINER), None),
        (v1.NamespaceOption(pid=v1.POD), "pod"),
        (v1.NamespaceOption(pid=v1.TARGET, target_id="abc"), "container:abc"),
    ],
)
def test_pid_namespaces(options: v1.NamespaceOption | None, path: str | None) -> None:
    found = build(security(namespace_options=options))["linux"]["namespaces"]
    assert next(each for each in found if each["type"] == "pid").get("path") == path


def test_shared_memory_is_the_ipc_namespaces() -> None:
    def shm(mode: v1.NamespaceMode) -> str:
        mounts = build(security(namespace_options=v1.NamespaceOption(ipc=mode)))["mounts"]
        return str(next(each["type"] for each in mounts if each["destination"] == "/dev/shm"))

    assert (shm(v1.POD), shm(v1.CONTAINER)) == ("bind", "tmpfs")


def test_sysctls() -> None:
    given = {"net/ipv4/conf/eth0.1/forwarding": "1", "kernel.shmmax": "5", "vm.x": "1"}
    settings = normalized(given)
    assert settings == {"net.ipv4.conf.eth0/1.forwarding": "1", "kernel.shmmax": "5", "vm.x": "1"}
    pod = v1.PodSandboxConfig(linux=v1.LinuxPodSandboxConfig(sysctls=given))
    own = security(namespace_options=v1.NamespaceOption(ipc=v1.CONTAINER))
    assert build(own, pod=pod)["linux"]["sysctl"] == {"kernel.shmmax": "5"}
    assert "sysctl" not in build(security(), pod=pod)["linux"]
    for name in ("", "net", "a..b", "../x", "a b.c", "kernel.hostname", "kernel/modprobe"):
        with pytest.raises(InvalidArgument):
            normalized({name: "1"})
    normalized({"kernel.core_pattern": "core.%p"})
    for name, value in (("kernel.core_pattern", "|x"), ("vm.x", "\0"), ("vm.x", "1" * 5000)):
        with pytest.raises(InvalidArgument):
            normalized({name: value})


def test_devices_that_are_asked_for() -> None:
    asked = [
        v1.Device(host_path="/dev/fuse"),
        v1.Device(host_path="/dev/sdz", container_path="/dev//a/./b", permissions="r"),
    ]
    found = devices(asked)
    assert [each.path for each in found] == ["/dev/fuse", "/dev/a/b"]
    assert [each.access for each in found] == ["rwm", "r"]
    assert [each.read_only for each in found] == [False, True]
    with pytest.raises(InvalidArgument, match="another device"):
        devices([*asked, v1.Device(host_path="/dev/null", container_path="/dev/fuse")])


@pytest.mark.parametrize("kind", ["network", "pid", "ipc"])
def test_host_namespaces_are_refused(kind: str) -> None:
    config = v1.PodSandboxConfig()
    setattr(config.linux.security_context.namespace_options, kind, v1.NODE)
    with pytest.raises(InvalidArgument, match=f"host's {kind}"):
        oci_spec.check_sandbox(config)


def test_exec_keeps_the_containers_process() -> None:
    spec = build(v1.ContainerConfig())
    process = oci_spec.exec_process(spec, ["true"], tty=False)
    assert process["args"] == ["true"]
    assert process["cwd"] == "/srv"
    assert spec["process"]["args"] == ["/entry", "default"]
