"""Whose the files of a shared mount are, as the pod's user namespace has it.

The guest has them by 9p, which takes no mapping of ids: so the host's mount has it, before it is
shared. There the guest's ids outside of the namespace stand for those that the files have.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

from hostlib import userns
from hostlib.errors import FailedPrecondition, InvalidArgument

_MEMBERS: Final = ("containerID", "hostID", "size")
_LAST_ID: Final = 2**32 - 2


@dataclass(frozen=True)
class Range:
    """So many ids: from `inside` on, as files have them, from `outside` on for the guest."""

    inside: int
    outside: int
    length: int

    @classmethod
    def parse(cls, data: object, name: str) -> Range:
        """The one mapping in a request's list. Raises `InvalidArgument`."""
        if isinstance(data, list) and len(data) == 1 and isinstance(data[0], dict):
            found: list[Any] = [data[0].get(each) for each in _MEMBERS]
            if all(type(one) is int and 0 <= one <= _LAST_ID for one in found) and found[2]:
                return cls(*found)
        raise InvalidArgument(f"a shared mount's {name} are no mapping")

    def lines(self, worker: int) -> str:
        """The map, with a line for the worker, which makes a file before it gives it away."""
        own = f"{self.inside} {self.outside} {self.length}\n"
        if self.outside <= worker < self.outside + self.length:
            return own
        free = not self.inside <= worker < self.inside + self.length
        return f"{own}{worker if free else _LAST_ID} {worker} 1\n"


@dataclass(frozen=True)
class Owners:
    """How users and groups are mapped."""

    users: Range
    groups: Range

    @classmethod
    def parse(cls, data: object) -> Owners:
        """The mappings in a request. Raises `InvalidArgument`."""
        if not isinstance(data, dict):
            raise InvalidArgument("a shared mount's owners are no object")
        users, groups = (data.get(each) for each in ("uidMappings", "gidMappings"))
        return cls(Range.parse(users, "uidMappings"), Range.parse(groups, "gidMappings"))


def apply(owners: Owners, tree: int, worker: int, path: str) -> None:
    """Map the detached mount behind `tree`, of the host's `path`, and what is mounted below where
    all of it can be; `worker` is the user and group of who serves it.

    Blocking. Raises `FailedPrecondition`.
    """
    try:
        namespace = userns.make(owners.users.lines(worker), owners.groups.lines(worker))
    except OSError as error:
        raise FailedPrecondition(
            f"no user namespace for the owners of host path {path}: {error.strerror}",
            hint="see user.max_user_namespaces on the host",
        ) from error
    try:
        try:
            userns.map_owners(tree, namespace, recursive=True)
        except OSError:
            # As runc has it: what is mounted below keeps its owners then.
            userns.map_owners(tree, namespace, recursive=False)
    except OSError as error:
        raise FailedPrecondition(
            f"host path {path} lies on a file system that cannot be mounted with the owners that"
            f" the pod's user namespace asks for: {error.strerror}",
            hint="use ext4, xfs, btrfs or tmpfs, or leave hostUsers at its default",
        ) from error
    finally:
        os.close(namespace)
