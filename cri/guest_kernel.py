"""Which kernel the pods' guests have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from hostlib.errors import FailedPrecondition

_VERSION: Final = re.compile(r"([0-9]+)\.([0-9]+)")

MAPPED_FILES: Final = (6, 3)
"""Since when a kernel shows the files of all that a container is made of (squashfs, ext4, tmpfs)
with the owners that a user namespace gives them."""


def version(guest: Path) -> tuple[int, int]:
    """Major and minor of the kernel of the guest image in this folder. Blocking. Raises
    `FailedPrecondition`."""
    try:
        body = json.loads((guest / "guest.json").read_bytes())
        found = _VERSION.match(str(body["kernel_version"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(f"the guest image in {guest} cannot be read: {error}") from error
    if found is None:
        raise FailedPrecondition(f"the guest image in {guest} names no kernel version")
    return int(found[1]), int(found[2])


def has_user_namespaces(guest: Path) -> bool:
    """Whether pods can have user namespaces of their own. Blocking."""
    try:
        return version(guest) >= MAPPED_FILES
    except FailedPrecondition:
        return False
