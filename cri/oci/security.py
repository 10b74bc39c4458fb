"""Namespaces and the kernel's security modules: what a microVM can have of them."""

from __future__ import annotations

from typing import Final

from cri.api import v1_pb2 as v1
from hostlib.errors import InvalidArgument, Unimplemented

OTHER_RUNTIME: Final = "run such pods under another runtime handler on this node"


def check_namespaces(options: v1.NamespaceOption) -> None:
    """Refuse the host's. Raises `InvalidArgument`, `Unimplemented`."""
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


def check_selinux(options: v1.SELinuxOption) -> None:
    """Refuse a type. Raises `Unimplemented`."""
    if options.type:
        raise Unimplemented("SELinux options are not supported", hint=OTHER_RUNTIME)


def check_security(security: v1.LinuxContainerSecurityContext) -> None:
    """Refuse what no container in a microVM can have. Raises `InvalidArgument`, `Unimplemented`."""
    check_namespaces(security.namespace_options)
    # Containers that say nothing of namespaces get a PID namespace of their own.
    if security.HasField("namespace_options") and security.namespace_options.pid == v1.POD:
        raise Unimplemented(
            "containers of a pod cannot share one PID namespace yet",
            hint="set the PID namespace to CONTAINER (shareProcessNamespace: false)",
        )
    check_selinux(security.selinux_options)
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


def namespaces(options: v1.NamespaceOption) -> list[dict[str, str]]:
    """The spec's `linux.namespaces`."""
    ipc = {"type": "ipc"} if options.ipc == v1.CONTAINER else {"type": "ipc", "path": "pod"}
    return [
        {"type": "pid"},
        ipc,
        {"type": "uts", "path": "pod"},
        {"type": "mount"},
        {"type": "cgroup"},
    ]
