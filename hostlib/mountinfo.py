"""The mounts that this process sees, as /proc/self/mountinfo lists them (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Mounted:
    """One mount. `root` is what of its file system it shows."""

    id: int
    device: int
    """The number of its file system, as stat(2) has it."""
    root: str
    path: str
    kind: str
    propagates: bool
    """Whether mounts below it come from, or go to, others of its group: it is shared or a slave."""


def read() -> list[Mounted]:
    """All of them, oldest first."""
    with open("/proc/thread-self/mountinfo", "rb") as source:
        return [parse(line) for line in source]


def parse(line: bytes) -> Mounted:
    """One line of the file."""
    fields = line.split()
    end = fields.index(b"-", 6)
    tags = [each.partition(b":")[0] for each in fields[6:end]]
    return Mounted(
        int(fields[0]),
        os.makedev(*(int(each) for each in fields[2].split(b":"))),
        unescape(fields[3]),
        unescape(fields[4]),
        os.fsdecode(fields[end + 1]),
        b"shared" in tags or b"master" in tags,
    )


def below(mounts: list[Mounted], path: str) -> list[Mounted]:
    """Those whose mount point lies below `path`, which has no links."""
    prefix = path.rstrip("/") + "/"
    return [each for each in mounts if each.path.startswith(prefix) and each.path != prefix]


def of_descriptor(mounts: list[Mounted], descriptor: int) -> Mounted | None:
    """The mount that an open file lies on; None when it is not among them."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as source:
        found = dict(line.split(b":", 1) for line in source if b":" in line)
    number = int(found[b"mnt_id"])
    return next((each for each in mounts if each.id == number), None)


def unescape(field: bytes) -> str:
    """A path of the file, in which space, tab, newline and backslash are octal."""
    for code in (b"\\040", b"\\011", b"\\012", b"\\134"):
        field = field.replace(code, bytes([int(code[1:], 8)]))
    return os.fsdecode(field)
