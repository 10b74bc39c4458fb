"""Namespaces and the kernel's security modules: what a microVM can have of them."""

from __future__ import annotations

from typing import Final

from cri.api import v1_pb2 as v1
from cri.oci import user_namespace
from cri.oci.seccomp import choice
from hostlib.errors import FailedPrecondition, InvalidArgument, Unimplemented

OTHER_RUNTIME: Final = "run such pods under another runtime handler on this node"

_Security = v1.LinuxContainerSecurityContext | v1.LinuxSandboxSecurityContext

_HOST: Final = {
    "network": "hostNetwork: false",
    "pid": "hostPID: false, and shareProcessNamespace: true to see the pod's other processes",
    "ipc": "hostIPC: false; containers of a pod share one IPC namespace all the same",
}


def check_namespaces(options: v1.NamespaceOption) -> None:
    """Refuse the host's. Raises `InvalidArgument`."""
    for kind, instead in _HOST.items():
        mode = getattr(options, kind)
        if mode == v1.NODE:
            raise InvalidArgument(
                f"a pod in a microVM cannot use the host's {kind} namespace: it has a kernel of its"
                " own",
                hint=f"set {instead}; or {OTHER_RUNTIME}",
            )
        if mode not in (v1.POD, v1.CONTAINER, v1.TARGET):
            raise InvalidArgument(f"unknown mode {mode} of the {kind} namespace")
    if options.network == v1.CONTAINER:
        raise InvalidArgument(
            "containers of a pod share one network namespace", hint="set network to POD"
        )
    for kind in ("network", "ipc"):
        if getattr(options, kind) == v1.TARGET:
            raise InvalidArgument(f"TARGET is a mode of the pid namespace alone, not of {kind}")
    if options.target_id and options.pid != v1.TARGET:
        raise InvalidArgument("target_id goes with the pid mode TARGET alone")
    user_namespace.of_pod(options)


def check_security_modules(security: _Security) -> None:
    """Refuse what the guest's kernel does not enforce. Raises `InvalidArgument`, `Unimplemented`.

    AppArmor's RuntimeDefault and Unconfined are both no profile, as on every node whose kernel has
    no AppArmor: a runtime's default applies where there is one.
    """
    options = security.selinux_options
    for field in ("user", "role", "type", "level"):
        if value := getattr(options, field):
            raise Unimplemented(
                f"SELinux {field} {value[:80]!r}: the guest's kernel enforces no labels",
                hint=f"leave seLinuxOptions out, or {OTHER_RUNTIME}",
            )
    if isinstance(security, v1.LinuxContainerSecurityContext):
        _check_apparmor(security)
    elif security.HasField("apparmor"):
        _refuse_apparmor(security.apparmor)


def _check_apparmor(security: v1.LinuxContainerSecurityContext) -> None:
    name = security.apparmor_profile
    if security.HasField("apparmor"):
        _refuse_apparmor(security.apparmor)
    elif name.startswith("localhost/"):
        raise _no_apparmor(name)
    elif name not in ("", "runtime/default", "unconfined"):
        raise InvalidArgument(
            f"apparmor_profile {name[:200]!r} is no profile",
            hint='"runtime/default", "unconfined" or nothing',
        )


def _refuse_apparmor(profile: v1.SecurityProfile) -> None:
    kind = profile.profile_type
    if kind == v1.SecurityProfile.Localhost:
        raise _no_apparmor(profile.localhost_ref)
    if kind not in (v1.SecurityProfile.RuntimeDefault, v1.SecurityProfile.Unconfined):
        raise InvalidArgument(f"apparmor: unknown profile_type {kind}")
    if profile.localhost_ref:
        raise InvalidArgument("apparmor: localhost_ref goes with profile_type Localhost alone")


def _no_apparmor(name: str) -> Unimplemented:
    return Unimplemented(
        f"AppArmor profile {name[:200]!r}: profiles of the node do not apply inside a microVM",
        hint=f"use RuntimeDefault or Unconfined, or {OTHER_RUNTIME}",
    )


def check_security(security: v1.LinuxContainerSecurityContext, *, sandbox: bool) -> None:
    """Refuse what no container in a microVM can have; `sandbox` says whether the pod may hold
    privileged containers. Raises `InvalidArgument`, `Unimplemented`, `FailedPrecondition`."""
    check_namespaces(security.namespace_options)
    check_security_modules(security)
    choice.choose(security)
    if security.privileged and not sandbox:
        raise FailedPrecondition(
            "the pod was not made for privileged containers",
            hint="set privileged in the sandbox's security context too, as the kubelet does",
        )


def namespaces(
    security: v1.LinuxContainerSecurityContext, target: str = "", *, user: bool = False
) -> list[dict[str, str]]:
    """The spec's `linux.namespaces`; `target` is the id of the container whose PID namespace is
    meant by TARGET, `user` whether the pod has a user namespace. A container that says nothing of
    namespaces has a PID namespace of its own."""
    options = security.namespace_options
    pid = {"type": "pid"}
    if options.pid == v1.TARGET:
        pid["path"] = f"container:{target or options.target_id}"
    elif security.HasField("namespace_options") and options.pid == v1.POD:
        pid["path"] = "pod"
    ipc = {"type": "ipc"} if options.ipc == v1.CONTAINER else {"type": "ipc", "path": "pod"}
    found = [pid, ipc, {"type": "uts", "path": "pod"}, {"type": "mount"}, {"type": "cgroup"}]
    return [*found, {"type": "user", "path": "pod"}] if user else found
