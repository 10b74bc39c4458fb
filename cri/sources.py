"""What of the host a container asks for: opened, judged by what it is, and put into words for the
shim. A folder or file goes into the pod's share; a disk into a slot; what else there is stays out.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cri.oci.devices import HostDevice, node_path
from cri.oci.mounts import SHARE, HostMount
from hostlib import linux, mountinfo
from hostlib.errors import FailedPrecondition, Unimplemented

_IN_EVERY_GUEST: Final = {
    (1, 3): "null",
    (1, 5): "zero",
    (1, 7): "full",
    (1, 8): "random",
    (1, 9): "urandom",
    (5, 0): "tty",
    (10, 200): "net/tun",
    (10, 229): "fuse",
}
"""Character devices that are the kernel's alone, by number: the guest's own stand for them."""

_PUBLISHED: Final = "..data"
"""The link that the kubelet swaps, in a folder that it publishes."""

_EMPTY_DIR: Final = re.compile(
    r"(?P<folder>.*/pods/[^/]+/volumes/kubernetes\.io~empty-dir/[^/]+)(?P<part>/.*)?", re.DOTALL
)
"""The kubelet's path of an emptyDir; with medium Memory a tmpfs is mounted there, with HugePages a
hugetlbfs."""

_HUGE_PAGE: Final = 2 << 20
"""Bytes of a huge page that a guest can make."""

_SPECIAL: Final = {
    stat.S_IFSOCK: ("a socket", "a program inside a microVM cannot connect to a host's process"),
    stat.S_IFIFO: ("a FIFO", "a FIFO does not join a microVM and the host"),
}


@dataclass
class Sources:
    """The open sources of a container; `close` when the shim has them."""

    shares: list[dict[str, Any]] = field(default_factory=list)
    disks: list[dict[str, Any]] = field(default_factory=list)
    _share_fds: list[int] = field(default_factory=list)
    _disk_fds: list[int] = field(default_factory=list)

    @property
    def descriptors(self) -> list[int]:
        """One for each share, then one for each disk."""
        return [*self._share_fds, *self._disk_fds]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self._share_fds, self._disk_fds = [], []

    def add(
        self, spec: dict[str, Any], mounts: Sequence[HostMount], devices: Sequence[HostDevice]
    ) -> None:
        """Open all of it, and say in `spec` what it turned out to be.

        Blocking. Raises `FailedPrecondition`, `InvalidArgument`, `Unimplemented`; what is open
        then stays so until `close`.
        """
        table = mountinfo.read() if any(_depends_on_mounts(each) for each in mounts) else []
        for mount in mounts:
            self._mount(spec, mount, table)
        for device in devices:
            mode = _mode(device.host_path)
            if not (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)):
                raise FailedPrecondition(
                    f"device {device.host_path} is no device", hint="give files as mounts"
                )
            self._device(spec, device)

    def _mount(
        self, spec: dict[str, Any], mount: HostMount, table: list[mountinfo.Mounted]
    ) -> None:
        tree = open_host_path(mount.host_path)
        self._share_fds.append(tree)
        mode = os.fstat(tree).st_mode
        if refused := _SPECIAL.get(stat.S_IFMT(mode)):
            what, why = refused
            raise FailedPrecondition(
                f"host path {mount.host_path} is {what}: {why}",
                hint="reach it over the network, or run such pods under another runtime handler",
            )
        source = f"{SHARE}/{mount.share}"
        entry = next(each for each in spec["mounts"] if each["source"] == source)
        if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
            os.close(self._share_fds.pop())
            spec["mounts"].remove(entry)
            where = f"mount of device {mount.host_path}"
            path = node_path(where, entry["destination"])
            self._device(spec, HostDevice(mount.host_path, path, "r" if mount.readonly else "rw"))
            return
        path = os.path.realpath(mount.host_path)
        if mount.follows:
            _check_follows(mount.host_path, path, table)
        nested = mount.follows or mountinfo.below(table, path)
        if mount.readonly and not mount.recursive and nested:
            # All that is below is one mount to the guest. The host's are read-only as asked.
            entry["options"] = ["rw" if each == "ro" else each for each in entry["options"]]
        share: dict[str, Any] = {
            "share": mount.share,
            "readonly": mount.readonly,
            "recursive": mount.recursive,
            "follows": mount.follows,
        }
        if mount.owners is not None:
            share |= {"path": mount.host_path, "owners": mount.owners.to_oci()}
        if not nested and stat.S_ISDIR(mode):
            if mount.readonly and os.path.islink(os.path.join(path, _PUBLISHED)):
                share["published"] = True
            elif (own := _empty_dir(tree, path, table)) is not None:
                share["own"] = own
        if "own" not in share and linux.is_hugetlbfs(tree):
            raise FailedPrecondition(
                f"host path {mount.host_path} has the host's huge pages, which a guest cannot map",
                hint="an emptyDir of medium HugePages-2Mi has the guest's own",
            )
        self.shares.append(share)

    def _device(self, spec: dict[str, Any], device: HostDevice) -> None:
        try:
            found = os.stat(device.host_path)
        except OSError as error:
            raise _unusable(f"device {device.host_path}", error) from error
        node: dict[str, Any] = {
            "path": device.path,
            "fileMode": stat.S_IMODE(found.st_mode),
            "uid": found.st_uid,
            "gid": found.st_gid,
        }
        major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
        linux_spec = spec["linux"]
        if stat.S_ISBLK(found.st_mode):
            node |= {"type": "b", "disk": len(self.disks), "access": device.access}
            self._disk_fds.append(open_disk(device.host_path, read_only=device.read_only))
            self.disks.append({"readonly": device.read_only})
        elif (major, minor) in _IN_EVERY_GUEST:
            node |= {"type": "c", "major": major, "minor": minor}
            # No rules are no filter.
            if rules := linux_spec["resources"].get("devices"):
                access = device.access
                number = {"major": major, "minor": minor}
                rules.append({"allow": True, "type": "c", **number, "access": access})
        else:
            raise Unimplemented(
                f"device {device.host_path} ({major}:{minor}) is the host's, and cannot be given to"
                " a microVM",
                hint="block devices and /dev/fuse can; run such pods under another runtime handler",
            )
        linux_spec.setdefault("devices", []).append(node)


def _depends_on_mounts(mount: HostMount) -> bool:
    pods = f"{os.sep}pods{os.sep}"
    return mount.follows or mount.readonly or pods in mount.host_path


def _empty_dir(tree: int, path: str, table: list[mountinfo.Mounted]) -> dict[str, Any] | None:
    """What the guest needs to have an emptyDir, or a part of one, as its own."""
    shown = max((each for each in table if _within(path, each.path)), key=_depth, default=None)
    if shown is None:
        return None
    found = os.fstat(tree)
    # A subPath is a mount of its own, and tells by its root what it is a part of.
    inside = os.path.normpath(os.path.join(shown.root, os.path.relpath(path, shown.path)))
    match = _EMPTY_DIR.fullmatch(inside)
    size, huge = 0, False
    if match is not None:
        folder, part = match["folder"], match["part"] or ""
    elif shown.kind in ("tmpfs", "hugetlbfs") and any(
        each.device == found.st_dev and each.root == "/" and _EMPTY_DIR.fullmatch(each.path)
        for each in table
    ):
        folder, part = "/", inside
        whole = os.fstatvfs(tree)
        size = whole.f_blocks * whole.f_frsize
        huge = shown.kind == "hugetlbfs"
        if huge and whole.f_bsize != _HUGE_PAGE:
            raise Unimplemented(
                f"host path {path} is of huge pages of {whole.f_bsize >> 20} MiB; a guest has those"
                " of 2 MiB alone",
                hint="medium: HugePages-2Mi",
            )
    else:
        return None
    return {
        **({"huge": True} if huge else {}),
        "key": hashlib.sha256(f"{found.st_dev} {folder}".encode()).hexdigest()[:32],
        "path": part.strip("/"),
        "size": size,
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }


def _depth(mount: mountinfo.Mounted) -> tuple[int, int]:
    # Of those at one path the last covers the others.
    return len(mount.path), mount.id


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _check_follows(path: str, real: str, table: list[mountinfo.Mounted]) -> None:
    descriptor = os.open(real, os.O_PATH | os.O_CLOEXEC)
    try:
        found = mountinfo.of_descriptor(table, descriptor)
    finally:
        os.close(descriptor)
    if found is None or not found.propagates:
        at = found.path if found else "a mount that is gone"
        raise FailedPrecondition(
            f"host path {path} lies on {at}, which is neither a shared nor a slave mount",
            hint=f"mount --make-rshared {at}, or use mountPropagation None",
        )


def open_host_path(path: str) -> int:
    """A detached mount of a host path; as with containerd, a folder that is missing is made.

    Blocking. Raises `FailedPrecondition`.
    """
    try:
        if not os.path.lexists(path):
            os.makedirs(path, mode=0o755, exist_ok=True)
        return linux.open_tree(os.path.realpath(path))
    except OSError as error:
        raise _unusable(f"host path {path}", error) from error


def open_disk(path: str, *, read_only: bool) -> int:
    """A block device, opened so that nobody can open it anew by the descriptor.

    Blocking. Raises `FailedPrecondition`.
    """
    try:
        tree = linux.open_tree(os.path.realpath(path))
        try:
            access = os.O_RDONLY if read_only else os.O_RDWR
            descriptor = os.open(f"/proc/self/fd/{tree}", access | os.O_CLOEXEC)
            # From here on, a worker with the right to pass over modes included.
            linux.restrict_mount(tree, linux.MOUNT_ATTR_NODEV, recursive=False)
            return descriptor
        finally:
            os.close(tree)
    except OSError as error:
        raise _unusable(f"block device {path}", error) from error


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError as error:
        raise _unusable(f"device {path}", error) from error


def _unusable(what: str, error: OSError) -> FailedPrecondition:
    return FailedPrecondition(f"{what} cannot be used: {error.strerror}")
