"""User namespaces: of a pod, by one range of users and one of groups, as containerd has it; and how
the owners of a mount's files are shown. The ids outside are the guest's, whose kernel is the pod's
own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cri.api import v1_pb2 as v1
from hostlib.errors import InvalidArgument

_IDS: Final = 2**32 - 1
"""One less than numbers: the last is no id."""


@dataclass(frozen=True)
class Range:
    """So many ids: from `inside` on in the namespace, from `outside` on beyond it."""

    inside: int
    outside: int
    length: int

    def to_oci(self) -> list[dict[str, int]]:
        return [{"containerID": self.inside, "hostID": self.outside, "size": self.length}]


@dataclass(frozen=True)
class Mappings:
    """Of users and of groups."""

    users: Range
    groups: Range

    def to_oci(self) -> dict[str, Any]:
        """As members of an OCI object: `uidMappings` and `gidMappings`."""
        return {"uidMappings": self.users.to_oci(), "gidMappings": self.groups.to_oci()}


def of_pod(options: v1.NamespaceOption) -> Mappings | None:
    """The pod's mappings, where it asks for a user namespace. Raises `InvalidArgument`."""
    if not options.HasField("userns_options"):
        return None
    asked = options.userns_options
    if asked.mode == v1.NODE:
        if asked.uids or asked.gids:
            raise InvalidArgument("the user namespace's mode NODE goes without mappings")
        return None
    if asked.mode != v1.POD:
        raise InvalidArgument(
            f"unsupported mode {_name(asked.mode)} of the user namespace", hint="POD or NODE"
        )
    found = _mappings("the user namespace", asked.uids, asked.gids)
    for kind, each in (("user", found.users), ("group", found.groups)):
        if each.inside != 0:
            raise InvalidArgument(
                f"the user namespace has no {kind} 0: its mapping begins with {each.inside}",
                hint="set container_id to 0",
            )
    return found


def of_container(pod: v1.NamespaceOption, container: v1.NamespaceOption) -> Mappings | None:
    """The pod's mappings, which are its containers' too. Raises `InvalidArgument` when the
    container names others."""
    found = of_pod(pod)
    if container.HasField("userns_options") and of_pod(container) != found:
        raise InvalidArgument(
            "the container's user namespace is not its pod's",
            hint="give both the same userns_options",
        )
    return found


def of_mount(where: str, mount: v1.Mount) -> Mappings | None:
    """How the owners of the mount's files are shown, where it says so. Raises `InvalidArgument`."""
    if not mount.uidMappings and not mount.gidMappings:
        return None
    return _mappings(where, mount.uidMappings, mount.gidMappings)


def _mappings(
    where: str, users: Sequence[v1.IDMapping], groups: Sequence[v1.IDMapping]
) -> Mappings:
    return Mappings(_range(where, "user", users), _range(where, "group", groups))


def _range(where: str, kind: str, lines: Sequence[v1.IDMapping]) -> Range:
    if len(lines) != 1:
        raise InvalidArgument(
            f"{where} has {len(lines)} {kind} mappings",
            hint="give one of users and one of groups, as the kubelet does",
        )
    line = lines[0]
    if not line.length or max(line.container_id, line.host_id) + line.length > _IDS:
        raise InvalidArgument(
            f"{where}: {line.length} {kind}s from {line.container_id} inside and {line.host_id}"
            " outside are no range of ids"
        )
    return Range(line.container_id, line.host_id, line.length)


def _name(mode: int) -> str:
    return v1.NamespaceMode.Name(mode) if mode in v1.NamespaceMode.values() else str(mode)
