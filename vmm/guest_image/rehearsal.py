"""The layer on which a pooled VM rehearses a container's life: three programs, all the agent."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Final

from hostlib import process

PROGRAMS: Final = ("true", "sleep", "echo")

_FOLDERS: Final = ("bin", "dev", "etc", "proc", "run", "sys", "tmp")


def tar(agent: bytes) -> bytes:
    """A root file system with the agent under the names of `PROGRAMS`, which it acts as."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in _FOLDERS:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        first = tarfile.TarInfo(f"bin/{PROGRAMS[0]}")
        first.mode, first.size = 0o755, len(agent)
        archive.addfile(first, io.BytesIO(agent))
        for name in PROGRAMS[1:]:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname, link.mode = tarfile.LNKTYPE, first.name, 0o755
            archive.addfile(link)
    return buffer.getvalue()


async def build(agent: bytes, target: Path) -> None:
    """Write the layer to `target` as an uncompressed squashfs: it is read under emulation."""
    sqfstar = process.find("sqfstar", package="squashfs-tools")
    target.unlink(missing_ok=True)
    await process.run(
        sqfstar,
        *("-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX", "-b", "128K"),
        *("-mkfs-time", "0", "-all-time", "0", "-no-xattrs", "-processors", "1"),
        str(target),
        stdin=tar(agent),
    )
