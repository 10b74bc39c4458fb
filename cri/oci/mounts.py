"""A container's mounts: its defaults, its pod's identity, and what the host shares with it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cri.api import v1_pb2 as v1
from hostlib.errors import FailedPrecondition, InvalidArgument, Unimplemented

SHARE: Final = "/run/thaw/share"
IDENTITY: Final = "/run/thaw/identity"
GENERATION: Final = "/run/thaw/generation"
"""Where a container finds a UUID that changes, in place, with every restore."""

_SEALED: Final = ("ro", "nosuid", "nodev", "noexec")

_MOUNT_OPTIONS: Final = frozenset({"noexec", "nodev", "nosuid"})


@dataclass(frozen=True)
class HostMount:
    """A folder or file of the host that the container sees through the pod's share."""

    share: str
    host_path: str
    readonly: bool


def mounts(
    container_id: str, config: v1.ContainerConfig
) -> tuple[list[dict[str, Any]], tuple[HostMount, ...]]:
    """The spec's mounts in order, and what the share must hold for them. Raises `InvalidArgument`,
    `Unimplemented`, `FailedPrecondition`."""
    security = config.linux.security_context
    binds, shares = _host_mounts(container_id, config.mounts)
    defaults = [
        *_default_mounts(privileged=security.privileged),
        *_identity_mounts(config.mounts, readonly=security.readonly_rootfs),
    ]
    # First, so that a volume at /run covers it, and no mount point is made in the volume.
    generation = _mount(
        GENERATION, "bind", f"{IDENTITY}/generation", ["bind", "rprivate", *_SEALED]
    )
    return [generation, *_order(defaults, binds)], shares


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
