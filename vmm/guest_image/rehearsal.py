"""The layer on which a pooled VM rehearses a container's life: three names of one small program."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Final

from hostlib import process

PROGRAM: Final = "thaw-rehearsal"
"""The program's file, beside the agent's; it acts by the name it is called."""

NAMES: Final = ("true", "sleep", "echo")

_FOLDERS: Final = ("bin", "dev", "etc", "proc", "run", "sys", "tmp")


def tar(program: bytes) -> bytes:
    """A root file system with the program under its `NAMES`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in _FOLDERS:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        first = tarfile.TarInfo(f"bin/{NAMES[0]}")
        first.mode, first.size = 0o755, len(program)
        archive.addfile(first, io.BytesIO(program))
        for name in NAMES[1:]:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname, link.mode = tarfile.LNKTYPE, first.name, 0o755
            archive.addfile(link)
    return buffer.getvalue()


async def build(program: bytes, target: Path) -> None:
    """Write the layer to `target` as an uncompressed squashfs: it is read under emulation."""
    sqfstar = process.find("sqfstar", package="squashfs-tools")
    target.unlink(missing_ok=True)
    await process.run(
        sqfstar,
        *("-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX", "-b", "128K"),
        *("-mkfs-time", "0", "-all-time", "0", "-no-xattrs", "-processors", "1"),
        str(target),
        stdin=tar(program),
    )
