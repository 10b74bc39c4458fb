"""What the kubelet publishes: folders of small files that it exchanges by swapping a link, for
configMaps, secrets, tokens and the downward API. They are read here, to be copied into the guest.
"""

from __future__ import annotations

import base64
import os
import stat
from typing import Any, Final

from hostlib.errors import FailedPrecondition, ResourceExhausted, Unavailable

DATA: Final = "..data"
"""The link that is swapped."""

MAX_BYTES: Final = 2 << 20
"""Of all files together; a secret and a configMap have 1 MiB at most. With its overhead it fits in
one message to the agent."""

MAX_ENTRIES: Final = 4096
_MAX_DEPTH: Final = 16
_LINK_BYTES: Final = 4096


def read(tree: int) -> list[dict[str, Any]]:
    """The entries of the folder behind a descriptor, as the agent's `volume.write` takes them.

    Blocking. Raises `Unavailable` when the folder was exchanged meanwhile, `ResourceExhausted` when
    it holds too much, `FailedPrecondition` when it holds what is neither file, folder nor link.
    """
    try:
        top = os.open(f"/proc/self/fd/{tree}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            before = os.readlink(DATA, dir_fd=top)
            entries: list[dict[str, Any]] = []
            _add(entries, "", os.fstat(top))
            _walk(top, "", entries, MAX_BYTES, _MAX_DEPTH)
            if os.readlink(DATA, dir_fd=top) == before:
                return entries
        finally:
            os.close(top)
    except OSError as error:
        raise Unavailable(f"a published volume changes: {error}") from error
    raise Unavailable("a published volume was exchanged while it was read")


def _walk(folder: int, path: str, entries: list[dict[str, Any]], left: int, depth: int) -> int:
    """Add what is in `folder`; how many bytes are left."""
    if not depth:
        raise ResourceExhausted("a published volume is too deep")
    for name in sorted(os.listdir(folder)):
        place = f"{path}/{name}" if path else name
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            target = os.readlink(name, dir_fd=folder)
            _add(entries, place, found, kind="link", data=target)
            continue
        if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
            raise FailedPrecondition(f"a published volume has something else in it: {place}")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=folder)
        try:
            if stat.S_ISDIR(found.st_mode):
                _add(entries, place, found)
                left = _walk(descriptor, place, entries, left, depth - 1)
                continue
            data = _content(descriptor, left)
        finally:
            os.close(descriptor)
        left -= len(data)
        _add(entries, place, found, kind="file", data=base64.b64encode(data).decode())
    return left


def _content(descriptor: int, limit: int) -> bytes:
    data = b""
    while chunk := os.read(descriptor, limit + 1 - len(data)):
        data += chunk
        if len(data) > limit:
            raise ResourceExhausted(f"a published volume has more than {MAX_BYTES} bytes")
    return data


def _add(
    entries: list[dict[str, Any]],
    path: str,
    found: os.stat_result,
    *,
    kind: str = "folder",
    data: str = "",
) -> None:
    if len(entries) >= MAX_ENTRIES or len(data) > max(_LINK_BYTES, 2 * MAX_BYTES):
        raise ResourceExhausted(f"a published volume has more than {MAX_ENTRIES} entries")
    entries.append(
        {
            "path": path,
            "kind": kind,
            "mode": stat.S_IMODE(found.st_mode),
            "uid": found.st_uid,
            "gid": found.st_gid,
            "data": data,
        }
    )
