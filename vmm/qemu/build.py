"""Which QEMU this is: snapshots fit only the very build that made them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from typing import Final

from hostlib import process
from hostlib.errors import FailedPrecondition, ThawError
from hostlib.tasks import in_thread

MINIMUM: Final = (7, 2)
_HINT: Final = "apt-get install qemu-system-x86 (7.2 or newer)"


@dataclass(frozen=True)
class QemuBuild:
    """The version as QEMU words it, and the binary's sha256."""

    path: str
    version: str
    digest: str


_known: dict[tuple[str, int, int, int], QemuBuild] = {}


def parse_version(text: str) -> tuple[int, int]:
    """Major and minor of ``qemu --version``'s output. Raises `FailedPrecondition`."""
    match = re.search(r"version (\d+)\.(\d+)", text)
    if match is None:
        raise FailedPrecondition(f"this is no QEMU: it says {text[:80]!r}", hint=_HINT)
    return int(match.group(1)), int(match.group(2))


def _digest(path: str) -> str:
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


async def identify(path: str) -> QemuBuild:
    """Look at the QEMU binary at `path`, or of that name on PATH; again only when the file changes.

    Raises `FailedPrecondition` when it is missing, no QEMU, or older than 7.2.
    """
    path = shutil.which(path, path=process.ENVIRONMENT["PATH"]) or path
    try:
        found = os.stat(path)
    except OSError as error:
        raise FailedPrecondition(
            f"QEMU {path} is not there: {error.strerror}", hint=_HINT
        ) from error
    key = (path, found.st_ino, found.st_size, found.st_mtime_ns)
    if (build := _known.get(key)) is not None:
        return build
    try:
        result = await process.run(path, "--version", timeout=20)
    except (OSError, ThawError) as error:
        raise FailedPrecondition(f"QEMU {path} does not run: {error}", hint=_HINT) from error
    version = result.stdout.decode(errors="replace").partition("\n")[0].strip()
    if parse_version(version) < MINIMUM:
        raise FailedPrecondition(f"{path} is too old: {version}", hint=_HINT)
    build = QemuBuild(path, version, await in_thread(_digest, path))
    _known.clear()
    _known[key] = build
    return build
