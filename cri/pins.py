"""The folder in which shims pin their network namespaces, as a private mount of its own.

A shim's mount namespace begins as a copy of the host's. With the pins of all pods in it, n pods
would hold n × n mounts, each pin would be mounted in n namespaces more, and a namespace would live
on in the copies after its pod had gone. Below a mount of their own the pins do not propagate, and a
shim drops them with one call (`shim.sandbox.make_mount_namespace`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from hostlib import linux, mountinfo

log = logging.getLogger(__name__)


def open_folder(folder: Path) -> None:
    """Make `folder` such a mount, unless it is one or has pins already: those of a former daemon
    would be hidden under it. Blocking; what fails is logged."""
    if _mounts(folder):
        return
    try:
        linux.mount(str(folder), str(folder), flags=linux.MS_BIND)
        linux.mount("none", str(folder), flags=linux.MS_PRIVATE)
    except OSError as error:
        log.warning("pods' mount namespaces will hold each other's pins: %s", error)


def close_folder(folder: Path) -> None:
    """Undo `open_folder`, unless pins are left. Blocking; idempotent."""
    if _mounts(folder) == [os.path.realpath(folder)]:
        with contextlib.suppress(OSError):
            linux.umount(str(folder))


def _mounts(folder: Path) -> list[str]:
    """What is mounted at and below `folder`; os.path.ismount does not see a folder that is bound
    to itself."""
    path = os.path.realpath(folder)
    found = [each.path for each in mountinfo.read()]
    return [each for each in found if each == path or each.startswith(f"{path}/")]
