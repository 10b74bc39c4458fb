"""User namespaces that no process lives in: they say whose the files of a mount are."""

from __future__ import annotations

import os
import signal
from typing import Final

from hostlib import linux

IDMAP: Final = 0x00100000
"""MOUNT_ATTR_IDMAP of mount_setattr(2)."""


def make(users: str, groups: str) -> int:
    """A descriptor of a new user namespace with these maps, lines of `inside outside length`.

    By a child that lives for a moment. Blocking, for a few milliseconds. Raises OSError.
    """
    told, tell = os.pipe()
    held, release = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            _live(tell, held)
        try:
            number = int.from_bytes(os.read(told, 4), "little")
            if number:
                raise OSError(number, os.strerror(number))
            for name, text in (("uid_map", users), ("gid_map", groups)):
                _write(f"/proc/{child}/{name}", text)
            return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            # A byte, since others that are forked beside may hold the pipe's end for as long.
            os.write(release, b".")
            os.waitpid(child, 0)
    finally:
        for descriptor in (told, tell, held, release):
            os.close(descriptor)


def _live(tell: int, held: int) -> None:
    """What the child does: system calls alone. Does not return."""
    try:
        number = 0
        try:
            linux.unshare(linux.CLONE_NEWUSER)
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        except OSError as error:
            number = error.errno or 1
        os.write(tell, number.to_bytes(4, "little"))
        os.read(held, 1)
    finally:
        os._exit(0)


def _write(path: str, text: str) -> None:
    # A map is taken by one write.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def map_owners(tree: int, namespace: int, *, recursive: bool) -> None:
    """Show the files of a detached mount, and of those below it, with the owners that the user
    namespace gives them. Linux 5.12. Raises OSError: EINVAL where a file system cannot."""
    linux.restrict_mount(tree, IDMAP, recursive=recursive, user_namespace=namespace)
