"""A container's devices, as requested; what the host has there is seen when it is opened."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from cri.api import v1_pb2 as v1
from hostlib.errors import InvalidArgument


@dataclass(frozen=True)
class HostDevice:
    """A device of the host, and the node in the container that stands for it. ``access`` is of r,
    w and m, as in the OCI spec."""

    host_path: str
    path: str
    access: str

    @property
    def read_only(self) -> bool:
        return "w" not in self.access


def devices(asked: Sequence[v1.Device]) -> tuple[HostDevice, ...]:
    """The devices that a container asks for. Raises `InvalidArgument`."""
    found: dict[str, HostDevice] = {}
    for device in asked:
        where = f"device {device.host_path}"
        if not device.host_path.startswith("/") or "\0" in device.host_path:
            raise InvalidArgument(f"{where}: host_path is not absolute")
        access = device.permissions or "rwm"
        if set(access) - set("rwm"):
            raise InvalidArgument(f"{where}: permissions {access!r} are not of r, w and m")
        path = node_path(where, device.container_path or device.host_path)
        if path in found:
            raise InvalidArgument(f"{where}: another device is at {path} too")
        found[path] = HostDevice(device.host_path, path, access)
    return tuple(found.values())


def node_path(where: str, path: str) -> str:
    """The path of a node in a container. Raises `InvalidArgument`, unless it is below /dev."""
    plain = posixpath.normpath("/" + path.lstrip("/"))
    if not plain.startswith("/dev/") or "\0" in path:
        raise InvalidArgument(
            f"{where}: {path!r} is not below /dev, the only place where devices work",
            hint="name a path below /dev",
        )
    return plain
