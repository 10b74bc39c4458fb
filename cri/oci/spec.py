"""The whole spec of a container, and the process of an exec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cri.api import v1_pb2 as v1
from cri.oci import user_namespace
from cri.oci.capabilities import capabilities
from cri.oci.devices import HostDevice, devices
from cri.oci.mounts import HostMount, ImageMount, mounts
from cri.oci.process import (
    ImageConfig,
    arguments,
    check_ids,
    environment,
    user,
    working_dir,
)
from cri.oci.resources import resources
from cri.oci.seccomp import choice
from cri.oci.security import (
    check_namespaces,
    check_security,
    check_security_modules,
    namespaces,
)
from cri.oci.sysctls import normalized, of_ipc
from hostlib.errors import InvalidArgument


@dataclass(frozen=True)
class Built:
    """The spec, and what it needs before it is carried out: of the host, and of other images."""

    spec: dict[str, Any]
    mounts: tuple[HostMount, ...]
    images: tuple[ImageMount, ...]
    devices: tuple[HostDevice, ...]


def check_sandbox(config: v1.PodSandboxConfig) -> None:
    """Refuse what no microVM can do. Raises `InvalidArgument`, `Unimplemented`."""
    if config.HasField("windows"):
        raise InvalidArgument("Windows pods are not supported")
    security = config.linux.security_context
    check_namespaces(security.namespace_options)
    if security.namespace_options.pid == v1.TARGET:
        raise InvalidArgument("a pod has no PID namespace to target; containers of it may have")
    check_security_modules(security)
    choice.choose(security)
    # A microVM needs no process that holds the pod, so that nothing runs as these.
    check_ids(security)
    normalized(config.linux.sysctls)


def build(
    container_id: str,
    pod: v1.PodSandboxConfig,
    config: v1.ContainerConfig,
    image: ImageConfig,
    *,
    hostname: str,
    cpus: str = "",
    target: str = "",
) -> Built:
    """The spec of a container, whose CDI devices are resolved (`cri.oci.cdi`), but for its seccomp
    filter; `target` is the id of the container whose PID namespace it asks for.

    Raises `InvalidArgument`, `Unimplemented`, `FailedPrecondition`.
    """
    if config.HasField("windows"):
        raise InvalidArgument("Windows containers are not supported")
    wanted_devices = devices(config.devices)
    security = config.linux.security_context
    check_security(security, sandbox=pod.linux.security_context.privileged)
    users = user_namespace.of_container(
        pod.linux.security_context.namespace_options, security.namespace_options
    )
    mounted = mounts(container_id, config, users, image.volumes)
    linux: dict[str, Any] = {
        "namespaces": namespaces(security, target, user=users is not None),
        "resources": resources(config.linux.resources, privileged=security.privileged, cpus=cpus),
        "maskedPaths": [] if security.privileged else list(security.masked_paths),
        "readonlyPaths": [] if security.privileged else list(security.readonly_paths),
        "rootfsPropagation": "rslave",
    }
    if security.namespace_options.ipc == v1.CONTAINER:
        linux["sysctl"] = of_ipc(normalized(pod.linux.sysctls))
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
            "cwd": working_dir(config.working_dir or image.working_dir or "/"),
            "capabilities": caps,
            "noNewPrivileges": security.no_new_privs,
            "oomScoreAdj": int(config.linux.resources.oom_score_adj),
        },
        "root": {"path": "rootfs", "readonly": security.readonly_rootfs},
        "hostname": hostname,
        "mounts": mounted.entries,
        "linux": linux,
    }
    return Built(spec, mounted.host, mounted.images, wanted_devices)


def exec_process(spec: Mapping[str, Any], argv: Sequence[str], *, tty: bool) -> dict[str, Any]:
    """The process object of a command run in a container: its spec's, with other arguments. Its
    seccomp filter is the container's; the agent has it."""
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
