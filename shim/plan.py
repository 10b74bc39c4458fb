"""What a container is made from, as the daemon asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hostlib.errors import InvalidArgument
from shim import params as read
from shim.layers import Layer
from shim.protocol import Wire
from shim.sandbox import SharedMount

SHARE: Final = "/run/thaw/share"
"""Where the guest has the shared folder."""


@dataclass(frozen=True)
class Disk:
    """A block device of the host: which one of the request's disks it is, and its descriptor."""

    number: int
    read_only: bool
    descriptor: int


@dataclass(frozen=True)
class Plan:
    """Descriptors stay the caller's. ``layers`` are the root's, lowest first, ``volumes`` those of
    the images that are mounted elsewhere."""

    spec: dict[str, Any]
    layers: list[Layer]
    volumes: list[Layer] = field(default_factory=list)
    mounts: list[tuple[SharedMount, int]] = field(default_factory=list)
    disks: list[Disk] = field(default_factory=list)

    @classmethod
    def parse(cls, params: Wire, descriptors: Sequence[int]) -> Plan:
        """The plan in the parameters of `container.create`. Raises `InvalidArgument`."""
        mounts = [SharedMount.parse(one) for one in read.objects(params, "mounts")]
        disks = read.objects(params, "disks")
        if len(mounts) + len(disks) != len(descriptors):
            raise InvalidArgument(
                f"{len(mounts)} mounts and {len(disks)} disks came with"
                f" {len(descriptors)} descriptors"
            )
        return cls(
            read.object_of(params, "spec"),
            [Layer.parse(one) for one in read.objects(params, "layers")],
            [Layer.parse(one) for one in read.objects(params, "volumes")],
            list(zip(mounts, descriptors[: len(mounts)], strict=True)),
            [
                Disk(number, one.get("readonly") is True, descriptor)
                for number, (one, descriptor) in enumerate(
                    zip(disks, descriptors[len(mounts) :], strict=True)
                )
            ],
        )

    def place_volume(self, mount: SharedMount, place: str) -> None:
        """Say in the spec where in the guest the volume is."""
        for entry in self.spec.get("mounts", ()):
            if entry.get("source") == f"{SHARE}/{mount.name}":
                entry["source"] = place

    def place_disk(self, disk: Disk, slot: int) -> None:
        """Say in the spec in which slot the disk is."""
        for device in self.spec.get("linux", {}).get("devices", ()):
            if device.get("disk") == disk.number:
                del device["disk"]
                device["slot"] = slot
