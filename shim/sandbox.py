"""What a shim makes on the host for its VM: namespaces, tap, shared folder, scratch disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hostlib import linux
from hostlib.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from shim.owners import Owners
from vmm import sparse

_FICLONE: Final = 0x40049409
_SHARE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEY: Final = re.compile(r"[0-9a-f]{1,56}")
_SHARE_OPTIONS: Final = "mode=0755,size=1m,nr_inodes=4096"
_VOLUME: Final = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOEXEC


@dataclass(frozen=True)
class OwnVolume:
    """An emptyDir, which the guest has as its own: a name that is the same for each of its mounts,
    the path inside it, its size in bytes where it is in memory and has one (else 0), the folder's
    mode and owner, and whether it is of huge pages, 2 MiB each."""

    key: str
    path: str
    size: int
    mode: int
    uid: int
    gid: int
    huge: bool = False

    @classmethod
    def parse(cls, data: object) -> OwnVolume:
        """The volume in a request. Raises `InvalidArgument`."""
        if not isinstance(data, dict) or not isinstance(data.get("path"), str):
            raise InvalidArgument("a volume of the guest's has no path")
        key = data.get("key")
        if not isinstance(key, str) or _KEY.fullmatch(key) is None:
            raise InvalidArgument(f"bad key of a volume: {str(key)[:80]!r}")
        numbers: list[Any] = [data.get(each) for each in ("size", "mode", "uid", "gid")]
        if not all(isinstance(each, int) and each >= 0 for each in numbers):
            raise InvalidArgument("a volume of the guest's has a bad number")
        size, mode, uid, gid = numbers
        return cls(key, data["path"], size, mode, uid, gid, data.get("huge") is True)


@dataclass(frozen=True)
class SharedMount:
    """A mount in the VM's shared folder. `recursive` says that what is mounted below it is
    read-only too, `follows` that what the host mounts below it later is seen. One that is
    `published`, or is the guest's `own`, lives in the guest where it can (`shim.volumes`); where
    not, its files have `owners`, if they are not to be as on the host, where it is at `path`."""

    name: str
    read_only: bool
    recursive: bool = False
    follows: bool = False
    published: bool = False
    own: OwnVolume | None = None
    owners: Owners | None = None
    path: str = ""

    @classmethod
    def parse(cls, data: dict[str, Any]) -> SharedMount:
        """The mount in a request. Raises `InvalidArgument`."""
        name = str(data.get("share"))
        if _SHARE_NAME.fullmatch(name) is None:
            raise InvalidArgument(f"bad name of a shared mount: {name[:80]!r}")
        own = data.get("own")
        return cls(
            name,
            read_only=data.get("readonly") is True,
            recursive=data.get("recursive") is True,
            follows=data.get("follows") is True,
            published=data.get("published") is True,
            own=None if own is None else OwnVolume.parse(own),
            owners=Owners.parse(data["owners"]) if "owners" in data else None,
            path=str(data.get("path", "")),
        )


def make_network_namespace(pin: Path) -> None:
    """Enter a new network namespace and pin it at `pin`, for others to find and to outlive us.

    Called before the shim leaves the host's mount namespace, or nobody else would see the pin.
    Raises `FailedPrecondition` without the right to make one.
    """
    try:
        linux.unshare(linux.CLONE_NEWNET)
        pin.parent.mkdir(parents=True, exist_ok=True)
        pin.touch(mode=0o600)
        linux.mount("/proc/thread-self/ns/net", str(pin), flags=linux.MS_BIND)
    except OSError as error:
        raise FailedPrecondition(
            f"no network namespace at {pin}: {error.strerror}", hint="run thawd as root"
        ) from error


def make_mount_namespace(share: Path, pins: Path) -> None:
    """Enter a private mount namespace, a slave of the host's, with an empty tmpfs at `share` and
    without `pins`, the mount below which all VMs' network namespaces are pinned.

    What is mounted below `share` shows in the worker's namespace too, which is made from this one.
    All of it goes with the last process of the shim and its VM.
    """
    try:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_SLAVE)
        # EINVAL where it is no mount: the daemon could not make it one.
        with contextlib.suppress(OSError):
            linux.umount(str(pins))
        share.mkdir(mode=0o755, exist_ok=True)
        linux.mount("thaw", str(share), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, _SHARE_OPTIONS)
        linux.mount("none", str(share), flags=linux.MS_SHARED)
    except OSError as error:
        raise FailedPrecondition(
            f"no mount namespace: {error.strerror}", hint="run thawd as root"
        ) from error


def attach_share(share: Path, mount: SharedMount, tree: int) -> None:
    """Attach the detached mount behind `tree` at ``share/name``, a folder or a file as it is.

    The guest has the files as they are; the worker can open no device there, and run nothing.
    What the host mounts below a mount that follows it comes with the flags that the host gave it.
    Raises `InvalidArgument` for a bad name, `FailedPrecondition` when it cannot be attached.
    """
    name = mount.name
    target = share / name
    try:
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            target.mkdir(mode=0o755)
        else:
            target.touch(mode=0o644, exist_ok=False)
        # Before it is attached: the worker's mount is a copy of this one as it is then.
        propagation = linux.MS_SLAVE if mount.follows else linux.MS_PRIVATE
        linux.restrict_mount(tree, _VOLUME, propagation=propagation)
        if mount.read_only:
            linux.restrict_mount(tree, linux.MOUNT_ATTR_RDONLY, recursive=mount.recursive)
        linux.move_mount(tree, str(target))
    except OSError as error:
        with contextlib.suppress(FailedPrecondition):
            detach_share(share, name)
        raise FailedPrecondition(f"mount {name} cannot be shared: {error.strerror}") from error


def detach_share(share: Path, name: str) -> None:
    """Undo `attach_share`. Idempotent."""
    target = share / name
    try:
        with contextlib.suppress(FileNotFoundError):
            linux.umount(str(target), linux.MNT_DETACH)
    except OSError as error:
        # EINVAL: nothing is mounted there.
        if error.errno != errno.EINVAL:
            raise FailedPrecondition(f"{target} does not unmount: {error.strerror}") from error
    try:
        if target.is_dir():
            target.rmdir()
        else:
            target.unlink(missing_ok=True)
    except OSError as error:
        raise FailedPrecondition(f"{target} is not removed: {error.strerror}") from error


def make_scratch(template: Path, target: Path) -> None:
    """A sparse copy of `template` at `target`: a clone where the file system can, else its data.

    Blocking. Raises `NotFound` without a template, `ResourceExhausted` when the disk is full.
    """
    try:
        source = os.open(template, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(
            f"scratch template {template}: {error.strerror}", hint="thaw bake"
        ) from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sink = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _copy(source, sink)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(sink)
    except OSError as error:
        raise ResourceExhausted(
            f"scratch disk {target} cannot be made: {error.strerror}", hint="free disk space"
        ) from error
    finally:
        os.close(source)


def _copy(source: int, sink: int) -> None:
    try:
        fcntl.ioctl(sink, _FICLONE, source)
        return
    except OSError:
        # Most file systems cannot.
        pass
    size = os.fstat(source).st_size
    os.ftruncate(sink, size)
    for start, end in sparse.segments(source, size):
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(sink, start, os.SEEK_SET)
        position = start
        while position < end:
            done = os.sendfile(sink, source, position, min(end - position, 1 << 20))
            if done == 0:
                break
            position += done
