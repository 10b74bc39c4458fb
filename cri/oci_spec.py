"""From CRI's ContainerConfig to the OCI runtime spec of the guest agent: pure functions.

The rules are containerd's (internal/cri/server/container_create.go, internal/cri/opts) where CRI
leaves a choice; docs/protocol.md lists the subset of the specification that the agent knows. What
cannot be done in a microVM is refused by name, never left out.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cri.api import v1_pb2 as v1
from cri.capabilities import capabilities
from hostlib.devices import default_rules
from hostlib.errors import FailedPrecondition, InvalidArgument, Unimplemented

SHARE: Final = "/run/thaw/share"
IDENTITY: Final = "/run/thaw/identity"
GENERATION: Final = "/run/thaw/generation"
"""Where a container finds a UUID that changes, in place, with every restore."""

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

OTHER_RUNTIME: Final = "run such pods under another runtime handler on this node"

_SEALED: Final = ("ro", "nosuid", "nodev", "noexec")

_MOUNT_OPTIONS: Final = frozenset({"noexec", "nodev", "nosuid"})


class ImageConfig(Protocol):
    """What an image says about its process."""

    @property
    def user(self) -> str: ...
    @property
    def env(self) -> Sequence[str]: ...
    @property
    def entrypoint(self) -> Sequence[str]: ...
    @property
    def cmd(self) -> Sequence[str]: ...
    @property
    def working_dir(self) -> str: ...


@dataclass(frozen=True)
class HostMount:
    """A folder or file of the host that the container sees through the pod's share."""

    share: str
    host_path: str
    readonly: bool


@dataclass(frozen=True)
class Built:
    """The spec, and the host paths that must be in the share before it is carried out."""

    spec: dict[str, Any]
    mounts: tuple[HostMount, ...]


def check_sandbox(config: v1.PodSandboxConfig) -> None:
    """Refuse what no microVM can do. Raises `InvalidArgument`, `Unimplemented`."""
    if config.HasField("windows"):
        raise InvalidArgument("Windows pods are not supported")
    security = config.linux.security_context
    _check_namespaces(security.namespace_options)
    if security.HasField("selinux_options") and security.selinux_options.type:
        raise Unimplemented("SELinux options are not supported", hint=OTHER_RUNTIME)
    for name in config.linux.sysctls:
        if not name or "/" in name or ".." in name:
            raise InvalidArgument(f"malformed sysctl {name!r}", hint="write it with dots")


def _check_namespaces(options: v1.NamespaceOption) -> None:
    for kind in ("network", "pid", "ipc"):
        if getattr(options, kind) == v1.NODE:
            raise InvalidArgument(
                f"a pod in a microVM cannot use the host's {kind} namespace", hint=OTHER_RUNTIME
            )
    if options.pid == v1.TARGET:
        raise Unimplemented("the PID namespace of another container (TARGET) is not supported yet")
    if options.HasField("userns_options") and options.userns_options.mode == v1.POD:
        raise Unimplemented(
            "user namespaces are not supported yet", hint="leave hostUsers at its default"
        )


def build(
    container_id: str,
    pod: v1.PodSandboxConfig,
    config: v1.ContainerConfig,
    image: ImageConfig,
    *,
    hostname: str,
) -> Built:
    """The spec of a container. Raises `InvalidArgument`, `Unimplemented`, `FailedPrecondition`."""
    security = config.linux.security_context
    _check(config)
    binds, shares = _host_mounts(container_id, config.mounts)
    readonly_root = security.readonly_rootfs
    linux: dict[str, Any] = {
        "namespaces": _namespaces(security.namespace_options),
        "resources": _resources(config.linux.resources, privileged=security.privileged),
        "maskedPaths": [] if security.privileged else list(security.masked_paths),
        "readonlyPaths": [] if security.privileged else list(security.readonly_paths),
        "rootfsPropagation": "rslave",
    }
    sysctls = {k: v for k, v in pod.linux.sysctls.items() if not k.startswith("net.")}
    if sysctls:
        linux["sysctl"] = sysctls
    caps = capabilities(
        security.capabilities.add_capabilities,
        security.capabilities.drop_capabilities,
        security.capabilities.add_ambient_capabilities,
        privileged=security.privileged,
    )
    spec = {
        "ociVersion": "1.2.0",
        "process": {
            "terminal": config.tty,
            "user": user(security, image.user),
            "args": arguments(config, image),
            "env": environment(config, image.env, hostname=hostname),
            "cwd": _working_dir(config.working_dir or image.working_dir or "/"),
            "capabilities": caps,
            "noNewPrivileges": security.no_new_privs,
            "oomScoreAdj": int(config.linux.resources.oom_score_adj),
        },
        "root": {"path": "rootfs", "readonly": readonly_root},
        "hostname": hostname,
        "mounts": [
            # First, so that a volume at /run covers it, and no mount point is made in the volume.
            _mount(GENERATION, "bind", f"{IDENTITY}/generation", ["bind", "rprivate", *_SEALED]),
            *_order(
                [
                    *_default_mounts(privileged=security.privileged),
                    *_identity_mounts(config.mounts, readonly=readonly_root),
                ],
                binds,
            ),
        ],
        "linux": linux,
    }
    return Built(spec, shares)


def exec_process(spec: Mapping[str, Any], argv: Sequence[str], *, tty: bool) -> dict[str, Any]:
    """The process object of a command run in a container: its spec's, with other arguments."""
    if not argv:
        raise InvalidArgument("no command to run")
    process = dict(spec["process"])
    process["args"] = list(argv)
    process["terminal"] = tty
    if tty:
        # As containerd does, also where the image or the container names another.
        others = [each for each in process.get("env", ()) if not each.startswith("TERM=")]
        process["env"] = [*others, "TERM=xterm"]
    return process


def _check(config: v1.ContainerConfig) -> None:
    if config.HasField("windows"):
        raise InvalidArgument("Windows containers are not supported")
    security = config.linux.security_context
    _check_namespaces(security.namespace_options)
    # Containers that say nothing of namespaces get a PID namespace of their own.
    if security.HasField("namespace_options") and security.namespace_options.pid == v1.POD:
        raise Unimplemented(
            "containers of a pod cannot share one PID namespace yet",
            hint="set the PID namespace to CONTAINER (shareProcessNamespace: false)",
        )
    if config.devices:
        raise Unimplemented(
            f"host device {config.devices[0].host_path} cannot be given to a microVM",
            hint=OTHER_RUNTIME,
        )
    if config.CDI_devices:
        raise Unimplemented(f"CDI device {config.CDI_devices[0].name} is not supported")
    if security.HasField("selinux_options") and security.selinux_options.type:
        raise Unimplemented("SELinux options are not supported", hint=OTHER_RUNTIME)
    _check_seccomp(security)
    apparmor = security.apparmor
    if (
        apparmor.profile_type == v1.SecurityProfile.Localhost
        or security.apparmor_profile.startswith("localhost/")
    ):
        raise Unimplemented("AppArmor profiles do not apply inside a microVM", hint=OTHER_RUNTIME)


def _check_seccomp(security: v1.LinuxContainerSecurityContext) -> None:
    # What RuntimeDefault means is the runtime's to say: inside a microVM it is no filter, since the
    # kernel that the container could attack serves its own pod alone.
    localhost = security.seccomp.profile_type == v1.SecurityProfile.Localhost
    if localhost or security.seccomp_profile_path.startswith("localhost/"):
        name = security.seccomp.localhost_ref or security.seccomp_profile_path
        raise Unimplemented(
            f"seccomp profile {name}: localhost profiles are not supported yet",
            hint="use RuntimeDefault or Unconfined",
        )


def arguments(config: v1.ContainerConfig, image: ImageConfig) -> list[str]:
    """Kubernetes' rule: a command replaces the entrypoint and the image's cmd, args the cmd alone.

    Raises `InvalidArgument` when nothing is left to run.
    """
    command, args = list(config.command), list(config.args)
    if not command:
        command = list(image.entrypoint)
        args = args or list(image.cmd)
    argv = command + args
    if not argv or not argv[0]:
        raise InvalidArgument(
            "no command specified", hint="neither the container nor its image names one"
        )
    return argv


def environment(
    config: v1.ContainerConfig, image_env: Iterable[str], *, hostname: str
) -> list[str]:
    """The image's variables, then the container's over them; HOSTNAME, TERM and PATH as containerd
    gives them."""
    merged = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if config.tty:
        merged["TERM"] = "xterm"
    for item in image_env:
        name, _, value = item.partition("=")
        if name:
            merged[name] = value
    for entry in config.envs:
        if not entry.key or "=" in entry.key or "\0" in entry.key:
            raise InvalidArgument(f"malformed name of an environment variable: {entry.key!r}")
        try:
            merged[entry.key] = entry.value.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"environment variable {entry.key} is not UTF-8") from error
    return [f"{name}={value}" for name, value in merged.items()]


def _working_dir(path: str) -> str:
    if not path.startswith("/"):
        raise InvalidArgument(f"working directory {path!r} is not absolute")
    return posixpath.normpath(path)


def user(security: v1.LinuxContainerSecurityContext, image_user: str) -> dict[str, Any]:
    """The process's user; names are looked up in the guest, in the container's own files."""
    if security.HasField("run_as_user"):
        name = str(security.run_as_user.value)
    else:
        name = security.run_as_username
    if security.HasField("run_as_group"):
        if not name:
            raise InvalidArgument(
                "run_as_group needs run_as_user or run_as_username", hint="set the user too"
            )
        name = f"{name}:{security.run_as_group.value}"
    for value in (security.run_as_user.value, security.run_as_group.value):
        if not 0 <= value < 2**32 - 1:
            raise InvalidArgument(f"user or group id {value} is out of range")
    if security.supplemental_groups_policy == v1.Strict:
        raise Unimplemented("the supplemental groups policy Strict is not supported yet")
    return {
        "username": name or image_user or "0",
        "additionalGids": list(security.supplemental_groups),
    }


def _namespaces(options: v1.NamespaceOption) -> list[dict[str, str]]:
    ipc = {"type": "ipc"} if options.ipc == v1.CONTAINER else {"type": "ipc", "path": "pod"}
    return [
        {"type": "pid"},
        ipc,
        {"type": "uts", "path": "pod"},
        {"type": "mount"},
        {"type": "cgroup"},
    ]


def _resources(resources: v1.LinuxContainerResources, *, privileged: bool) -> dict[str, Any]:
    for limit in resources.hugepage_limits:
        if limit.limit:
            raise Unimplemented(f"huge pages ({limit.page_size}) are not supported yet")
    if resources.cpuset_cpus or resources.cpuset_mems:
        raise Unimplemented(
            "cpusets name the host's CPUs, which a microVM does not see", hint=OTHER_RUNTIME
        )
    memory = {
        "limit": resources.memory_limit_in_bytes,
        "swap": resources.memory_swap_limit_in_bytes,
    }
    cpu = {
        "shares": resources.cpu_shares,
        "quota": resources.cpu_quota,
        "period": resources.cpu_period,
    }
    found: dict[str, Any] = {
        "memory": {key: int(value) for key, value in memory.items() if value},
        "cpu": {key: int(value) for key, value in cpu.items() if value},
        "unified": dict(resources.unified),
        # No rules are no filter: a privileged container may use every device of its VM.
        "devices": [] if privileged else default_rules(),
    }
    return {key: value for key, value in found.items() if value}


def _default_mounts(*, privileged: bool) -> list[dict[str, Any]]:
    system = ["nosuid", "noexec", "nodev"]
    access = "rw" if privileged else "ro"
    return [
        _mount("/proc", "proc", "proc", system),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        _mount("/dev/shm", "tmpfs", "shm", [*system, "mode=1777", "size=65536k"]),
        _mount("/dev/mqueue", "mqueue", "mqueue", system),
        _mount("/sys", "sysfs", "sysfs", [*system, access]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*system, "relatime", access]),
    ]


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}


def _identity_mounts(mounts: Iterable[v1.Mount], *, readonly: bool) -> list[dict[str, Any]]:
    taken = {posixpath.normpath(mount.container_path) for mount in mounts}
    access = "ro" if readonly else "rw"
    return [
        _mount(path, "bind", f"{IDENTITY}/{name}", ["rbind", "rprivate", mode])
        for path, name, mode in (
            ("/etc/hostname", "hostname", access),
            ("/etc/hosts", "hosts", access),
            ("/etc/resolv.conf", "resolv.conf", access),
            ("/etc/machine-id", "machine-id", "ro"),
        )
        if path not in taken
    ]


def _host_mounts(
    container_id: str, mounts: Sequence[v1.Mount]
) -> tuple[list[dict[str, Any]], tuple[HostMount, ...]]:
    binds, shares = [], []
    for number, mount in enumerate(mounts):
        path = mount.container_path
        if not path:
            raise InvalidArgument(f"mount {number} has no container_path")
        # A relative path is relative to the root, as in containerd.
        destination = posixpath.normpath("/" + path.lstrip("/"))
        _check_mount(mount)
        share = f"{container_id[:16]}-{number}"
        shares.append(HostMount(share, mount.host_path, mount.readonly))
        options = ["rbind", "rprivate", "ro" if mount.readonly else "rw", *mount.mount_options]
        binds.append(_mount(destination, "bind", f"{SHARE}/{share}", options))
    return binds, tuple(shares)


def _check_mount(mount: v1.Mount) -> None:
    where = f"mount at {mount.container_path}"
    if mount.HasField("image") or mount.image_sub_path:
        raise Unimplemented(f"{where}: image volumes are not supported yet")
    if not mount.host_path.startswith("/"):
        raise InvalidArgument(f"{where}: host_path {mount.host_path!r} is not absolute")
    if mount.propagation != v1.PROPAGATION_PRIVATE:
        raise Unimplemented(
            f"{where}: mounts do not propagate between the host and a microVM",
            hint="use mountPropagation None",
        )
    if mount.uidMappings or mount.gidMappings:
        raise Unimplemented(f"{where}: id-mapped mounts are not supported yet")
    if mount.recursive_read_only and not mount.readonly:
        raise InvalidArgument(f"{where}: recursive_read_only needs readonly")
    if unknown := sorted(set(mount.mount_options) - _MOUNT_OPTIONS):
        raise InvalidArgument(
            f"{where}: unknown mount option {unknown[0]!r}", hint="noexec, nodev, nosuid"
        )


def _order(defaults: list[dict[str, Any]], binds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parents before children; what the container mounts replaces a default at the same path."""
    taken = {mount["destination"] for mount in binds}
    if "/" in taken:
        raise FailedPrecondition("a mount cannot cover the container's root")
    kept = [mount for mount in defaults if mount["destination"] not in taken]
    return sorted([*kept, *binds], key=lambda mount: mount["destination"].count("/"))
