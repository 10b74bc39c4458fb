"""The template of a pod's scratch disk: a sparse, preformatted ext4 file system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from hostlib import process
from hostlib.tasks import in_thread
from vmm import sparse

DEFAULT_SIZE: Final = 10 * 1024**3
"""Bytes. It is sparse: what a pod does not write costs nothing."""

# Fixed, so that the template is the same bytes each time; clones live in different VMs.
_UUID: Final = "7a7a7a7a-7468-6177-8000-736372617463"


def _copy(source: Path, target: Path, size: int) -> None:
    with open(source, "rb") as reader, open(target, "wb") as sink:
        sparse.copy(reader.fileno(), sink.fileno(), size)


async def build(target: Path, size: int = DEFAULT_SIZE) -> None:
    """Format `target` anew with `size` bytes.

    No journal: a scratch disk never outlives a crash of its VM. Project quotas are enabled for
    limits of containers. Nothing is left to be initialised lazily, by a thread of the guest.
    """
    mkfs = process.find("mkfs.ext4", package="e2fsprogs")
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.touch()
    os.truncate(temporary, size)
    features = "^has_journal,^resize_inode,extent,metadata_csum,sparse_super2,quota,project"
    extended = (
        f"lazy_itable_init=0,lazy_journal_init=0,nodiscard,hash_seed={_UUID},quotatype=prjquota"
    )
    await process.run(
        mkfs,
        *("-q", "-F", "-b", "4096", "-I", "256", "-i", "65536", "-m", "0", "-L", "scratch"),
        *("-U", _UUID, "-O", features),
        *("-E", extended),
        str(temporary),
        env={**process.ENVIRONMENT, "E2FSPROGS_FAKE_TIME": "1"},
    )
    # mkfs writes the empty inode tables as zeros; as holes they cost a pod's clone nothing.
    punched = target.with_name(f".{target.name}.sparse.tmp")
    try:
        await in_thread(_copy, temporary, punched, size)
        os.rename(punched, target)
    finally:
        temporary.unlink()
        punched.unlink(missing_ok=True)
