"""The system calls that Python 3.11's standard library lacks, as typed functions.

Every function raises OSError with the errno and the path concerned.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from typing import Final

CLONE_NEWNS: Final = 0x00020000
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

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_THP_DISABLE: Final = 41

F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034
F_SEAL_SEAL: Final = 0x01
F_SEAL_SHRINK: Final = 0x02
F_SEAL_GROW: Final = 0x04
F_SEAL_WRITE: Final = 0x08
SEALED: Final = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
"""The seals of a snapshot's RAM: nobody who holds the descriptor can change it."""

# open_tree and move_mount came after the architectures' tables were unified.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429

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


def prctl(option: int, argument: int) -> None:
    """prctl(2) with one integer argument."""
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), zero, zero, zero))


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
