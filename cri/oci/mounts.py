"""A container's mounts: its defaults, its pod's identity, and what the host shares with it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cri.api import v1_pb2 as v1
from cri.oci.security import OTHER_RUNTIME
from cri.oci.user_namespace import Mappings, of_mount
from hostlib.errors import FailedPrecondition, InvalidArgument

SHARE: Final = "/run/thaw/share"
IDENTITY: Final = "/run/thaw/identity"
GENERATION: Final = "/run/thaw/generation"
"""Where a container finds a UUID that changes, in place, with every restore."""

MAX_VOLUMES: Final = 128
"""Volumes that an image may have of its own."""

_TERMINALS: Final = 5
"""The group of terminals, "tty" in every distribution."""

_SEALED: Final = ("ro", "nosuid", "nodev", "noexec")

_FOLLOWING: Final = (v1.PROPAGATION_HOST_TO_CONTAINER,)
_MOUNT_OPTIONS: Final = frozenset({"noexec", "nodev", "nosuid"})


@dataclass(frozen=True)
class HostMount:
    """A folder or file of the host that the container sees through the pod's share."""

    share: str
    host_path: str
    readonly: bool
    recursive: bool = False
    """Whether what is mounted below it is read-only too."""
    follows: bool = False
    """Whether what the host mounts below it later is seen (HOST_TO_CONTAINER)."""
    owners: Mappings | None = None
    """How the owners of its files are shown, where not as they are."""


@dataclass(frozen=True)
class ImageMount:
    """An image whose files the container sees; the source of `entry`, the spec's mount, is told
    once it is known what layers the image has."""

    number: int
    """Which of the request's mounts it is."""
    where: str
    image: v1.ImageSpec
    entry: dict[str, Any]


@dataclass(frozen=True)
class Mounts:
    """The spec's mounts in order, and what is needed before they are carried out."""

    entries: list[dict[str, Any]]
    host: tuple[HostMount, ...]
    images: tuple[ImageMount, ...]


def mounts(
    container_id: str,
    config: v1.ContainerConfig,
    users: Mappings | None = None,
    volumes: Sequence[str] = (),
) -> Mounts:
    """What the container mounts; `users` are its pod's, where it has a user namespace, `volumes`
    the folders that its image calls so. Raises `InvalidArgument`, `FailedPrecondition`."""
    security = config.linux.security_context
    asked, host, images = _asked_mounts(container_id, config.mounts, users)
    defaults = [
        *_default_mounts(security, users),
        *_identity_mounts(config.mounts, readonly=security.readonly_rootfs),
    ]
    # First, so that a volume at /run covers it, and no mount point is made in the volume.
    generation = _mount(
        GENERATION, "bind", f"{IDENTITY}/generation", ["bind", "rprivate", *_SEALED]
    )
    defaults += _image_volumes(volumes, {each["destination"] for each in defaults})
    return Mounts([generation, *_order(defaults, asked)], tuple(host), tuple(images))


def _default_mounts(
    security: v1.LinuxContainerSecurityContext, users: Mappings | None
) -> list[dict[str, Any]]:
    system = ["nosuid", "noexec", "nodev"]
    access = "rw" if security.privileged else "ro"
    if security.namespace_options.ipc == v1.CONTAINER:
        shm = _mount("/dev/shm", "tmpfs", "shm", [*system, "mode=1777", "size=65536k"])
    else:
        # Of the pod's IPC namespace, and as large.
        shm = _mount("/dev/shm", "bind", "/dev/shm", ["bind", "rprivate", "rw", *system])
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if users is None or users.groups.length > _TERMINALS:
        terminals.append(f"gid={_TERMINALS}")
    return [
        _mount("/proc", "proc", "proc", system),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/dev/pts", "devpts", "devpts", terminals),
        shm,
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


def _image_volumes(paths: Sequence[str], taken: set[str]) -> list[dict[str, Any]]:
    """Folders of the container that stay writable where its root is read-only."""
    if len(paths) > MAX_VOLUMES:
        raise InvalidArgument(
            f"the image has {len(paths)} volumes, more than {MAX_VOLUMES}",
            hint="an image of fewer VOLUME instructions",
        )
    found = {posixpath.normpath("/" + path.lstrip("/")) for path in paths}
    return [_mount(path, "volume", "volume", []) for path in sorted(found - {"/"} - taken)]


def _asked_mounts(
    container_id: str, mounts: Sequence[v1.Mount], users: Mappings | None
) -> tuple[list[dict[str, Any]], list[HostMount], list[ImageMount]]:
    entries, host, images = [], [], []
    for number, mount in enumerate(mounts):
        path = mount.container_path
        if not path:
            raise InvalidArgument(f"mount {number} has no container_path")
        where = f"mount at {path}"
        # A relative path is relative to the root, as in containerd.
        destination = posixpath.normpath("/" + path.lstrip("/"))
        _check_mount(where, mount)
        owners = of_mount(where, mount)
        if mount.HasField("image"):
            _check_image(where, mount)
            if owners is not None and owners != users:
                raise InvalidArgument(
                    f"{where}: an image's files have the owners that its pod's user namespace"
                    " gives them, and no others",
                    hint="leave out the mount's id mappings",
                )
            options = ["ro", "nodev", *mount.mount_options]
            if mount.image_sub_path:
                options.append(f"subpath={mount.image_sub_path}")
            entry = _mount(destination, "image", "", options)
            images.append(ImageMount(number, where, mount.image, entry))
        else:
            _check_host(where, mount)
            share = f"{container_id[:16]}-{number}"
            recursive, follows = mount.recursive_read_only, mount.propagation in _FOLLOWING
            host.append(
                HostMount(share, mount.host_path, mount.readonly, recursive, follows, owners)
            )
            access = "rro" if recursive else "ro" if mount.readonly else "rw"
            options = ["rbind", "rprivate", access, *mount.mount_options]
            entry = _mount(destination, "bind", f"{SHARE}/{share}", options)
            if owners is not None:
                entry |= owners.to_oci()
        entries.append(entry)
    return entries, host, images


def _check_mount(where: str, mount: v1.Mount) -> None:
    if mount.recursive_read_only:
        if not mount.readonly:
            raise InvalidArgument(f"{where}: recursive_read_only needs readonly")
        if mount.propagation != v1.PROPAGATION_PRIVATE:
            raise InvalidArgument(f"{where}: recursive_read_only needs propagation PRIVATE")
    if unknown := sorted(set(mount.mount_options) - _MOUNT_OPTIONS):
        raise InvalidArgument(
            f"{where}: unknown mount option {unknown[0]!r}", hint="noexec, nodev, nosuid"
        )


def _check_host(where: str, mount: v1.Mount) -> None:
    # The kubelet tells the subPath of every volume as `image_sub_path`; that of a host's folder is
    # in `host_path` already.
    if not mount.host_path.startswith("/"):
        raise InvalidArgument(f"{where}: host_path {mount.host_path!r} is not absolute")
    if "\0" in mount.host_path:
        raise InvalidArgument(f"{where}: host_path contains a NUL byte")
    if mount.propagation == v1.PROPAGATION_BIDIRECTIONAL:
        raise FailedPrecondition(
            f"{where}: what is mounted inside a microVM cannot appear on the host",
            hint=f"use mountPropagation HostToContainer or None, or {OTHER_RUNTIME}",
        )
    if mount.propagation not in (v1.PROPAGATION_PRIVATE, *_FOLLOWING):
        raise InvalidArgument(f"{where}: unknown propagation {mount.propagation}")


def _check_image(where: str, mount: v1.Mount) -> None:
    if mount.host_path:
        raise InvalidArgument(f"{where}: it has a host_path and an image", hint="set one of them")
    if not mount.image.image:
        raise InvalidArgument(f"{where}: its image has no name")
    if not mount.readonly:
        raise InvalidArgument(f"{where}: an image can be mounted read-only alone")
    if mount.propagation != v1.PROPAGATION_PRIVATE:
        raise InvalidArgument(f"{where}: an image needs propagation PRIVATE")
    path = mount.image_sub_path
    if path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise InvalidArgument(
            f"{where}: image_sub_path {path!r} is no relative path inside the image",
            hint="leave out the first / and every ..",
        )


def _order(defaults: list[dict[str, Any]], asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parents before children; what the container mounts replaces a default at the same path."""
    taken = {mount["destination"] for mount in asked}
    if "/" in taken:
        raise FailedPrecondition("a mount cannot cover the container's root")
    kept = [mount for mount in defaults if mount["destination"] not in taken]
    return sorted([*kept, *asked], key=lambda mount: mount["destination"].count("/"))
