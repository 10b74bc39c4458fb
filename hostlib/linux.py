"""The system calls that Python 3.11's standard library lacks, as typed functions.

Every function raises OSError with the errno and the path concerned.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Collection
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20

MNT_DETACH: Final = 2

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8

PR_SET_PDEATHSIG: Final = 1
PR_SET_KEEPCAPS: Final = 8
PR_SET_NAME: Final = 15
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_THP_DISABLE: Final = 41
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2

CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_MAX: Final = 63
"""No kernel has a capability of a higher number."""

_CAPABILITY_VERSION_3: Final = 0x20080522

F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034
F_SEAL_SEAL: Final = 0x01
F_SEAL_SHRINK: Final = 0x02
F_SEAL_GROW: Final = 0x04
F_SEAL_WRITE: Final = 0x08
SEALED: Final = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
"""The seals of a snapshot's RAM: nobody who holds the descriptor can change it."""

# These came after the architectures' tables were unified.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442

_STATFS_MAX: Final = 256
_HUGETLBFS_MAGIC: Final = 0x958458F6

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _check(result: int, name: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` names, for this thread (NEWNET) or process."""
    _check(_libc.unshare(ctypes.c_int(flags)))


def setns(descriptor: int, kind: int) -> None:
    """Move the calling thread into the namespace behind `descriptor`."""
    _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)))


def mount(
    source: str, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            source.encode(),
            target.encode(),
            fstype.encode() if fstype else None,
            ctypes.c_ulong(flags),
            data.encode() if data else None,
        ),
        target,
    )


def is_hugetlbfs(descriptor: int) -> bool:
    """Whether an open file, of any mode, is on huge pages: statfs(2)."""
    found = ctypes.create_string_buffer(_STATFS_MAX)
    _check(_libc.fstatfs(ctypes.c_int(descriptor), found))
    return ctypes.c_long.from_buffer(found).value == _HUGETLBFS_MAGIC


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target.encode(), ctypes.c_int(flags)), target)


def open_tree(path: str) -> int:
    """A detached, recursive bind mount of `path`, to be attached by `move_mount`, if need be by a
    process in another mount namespace that got the descriptor."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
    return _check(
        _libc.syscall(
            ctypes.c_long(_SYS_OPEN_TREE),
            ctypes.c_int(AT_FDCWD),
            ctypes.c_char_p(path.encode()),
            ctypes.c_uint(flags),
        ),
        path,
    )


def move_mount(descriptor: int, target: str) -> None:
    """Attach the detached mount behind `descriptor` at `target`."""
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_MOVE_MOUNT),
            ctypes.c_int(descriptor),
            ctypes.c_char_p(b""),
            ctypes.c_int(AT_FDCWD),
            ctypes.c_char_p(target.encode()),
            ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
        ),
        target,
    )


class _MountAttr(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def restrict_mount(
    descriptor: int,
    attributes: int,
    *,
    recursive: bool = True,
    propagation: int = 0,
    user_namespace: int = 0,
) -> None:
    """Add MOUNT_ATTR_* to the mount behind `descriptor`, and to those below it, and give them a
    propagation (MS_PRIVATE, MS_SLAVE). `user_namespace` goes with MOUNT_ATTR_IDMAP. Linux 5.12."""
    attr = _MountAttr(attributes, 0, propagation, user_namespace)
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(descriptor),
            ctypes.c_char_p(b""),
            ctypes.c_uint(AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)),
            ctypes.byref(attr),
            ctypes.c_size_t(ctypes.sizeof(attr)),
        )
    )


def open_read_only(path: str) -> int:
    """Open a file for reading, in a mount of its own that is read-only.

    Who is given the descriptor can change nothing about the file, whatever its capabilities: a
    plain read-only descriptor can be opened anew for writing through /proc, and takes fchmod(2).
    """
    tree = open_tree(path)
    try:
        restrict_mount(tree, MOUNT_ATTR_RDONLY)
        return os.open(f"/proc/self/fd/{tree}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(tree)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _check(_libc.pivot_root(new_root.encode(), put_old.encode()), new_root)


def prctl(option: int, argument: int, second: int = 0) -> None:
    """prctl(2) with one or two integer arguments."""
    zero = ctypes.c_ulong(0)
    _check(
        _libc.prctl(
            ctypes.c_int(option), ctypes.c_ulong(argument), ctypes.c_ulong(second), zero, zero
        )
    )


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def set_capabilities(numbers: Collection[int]) -> None:
    """Give the calling thread exactly these capabilities: effective, permitted and inheritable.

    It must hold them already. See capset(2).
    """
    data = (_CapData * 2)()
    for word in range(2):
        mask = sum(1 << (number - 32 * word) for number in numbers if number // 32 == word)
        data[word] = _CapData(mask, mask, mask)
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)))


def set_process_name(name: str) -> None:
    """What `ps` shows as this process's short name; 15 bytes of it."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_libc.prctl(ctypes.c_int(PR_SET_NAME), buffer, 0, 0, 0))


def seal(descriptor: int) -> None:
    """Make a memfd immutable for ever. EBUSY while a writable mapping of it exists."""
    fcntl.fcntl(descriptor, F_ADD_SEALS, SEALED)


def is_sealed(descriptor: int) -> bool:
    """Whether `descriptor` is a memfd that nobody can change."""
    try:
        return fcntl.fcntl(descriptor, F_GET_SEALS) & SEALED == SEALED
    except OSError:
        return False


def threads(pid: int) -> str:
    """What each thread of a process does, for a message: name, state (proc(5)), seconds of
    processor time so far; empty when the process does not exist."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = []
    try:
        for thread in sorted(os.listdir(f"/proc/{pid}/task")):
            with open(f"/proc/{pid}/task/{thread}/stat", "rb") as source:
                head, _, rest = source.read().rpartition(b")")
            fields = rest.split()
            name = head.partition(b"(")[2].decode(errors="replace")
            used = (int(fields[11]) + int(fields[12])) / ticks
            found.append(f"{name} {fields[0].decode()} {used:g} s")
    except OSError:
        # It, or a thread, ended meanwhile.
        pass
    return ", ".join(found)


def start_time(pid: int) -> int | None:
    """The process's start in clock ticks since boot; None when it does not exist.

    With the pid it names a process for good: a pid alone is used again.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as source:
            fields = source.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # A zombie is dead to us: its state is field 3, its start field 22 of proc(5).
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
