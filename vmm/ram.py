"""A snapshot's RAM as a sealed memfd: loaded once, mapped copy-on-write by every VM."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from hostlib import failpoint, linux
from hostlib.errors import DataLoss, FailedPrecondition, ResourceExhausted
from hostlib.tasks import in_thread
from vmm import sparse
from vmm.snapshot import Snapshot


def create(name: str) -> int:
    """An empty memfd that can be sealed later."""
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _load(path: Path, size: int, digest: str) -> int:
    descriptor = create("thaw-ram")
    try:
        with open(path, "rb") as source:
            found = os.fstat(source.fileno()).st_size
            if found != size:
                raise DataLoss(f"{path} has {found} bytes, not {size}")
            if sparse.copy(source.fileno(), descriptor, size) != digest:
                raise DataLoss(f"{path} differs from its recorded digest")
        linux.seal(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


async def load(snapshot: Snapshot) -> int:
    """The RAM of `snapshot` as a sealed memfd; the caller owns the descriptor.

    Checks the digest on the way. The memory is charged to the caller's cgroup. Raises `DataLoss`
    when the file is damaged, `ResourceExhausted` when memory does not suffice.
    """
    await failpoint.hit("ram.load")
    try:
        return await in_thread(_load, snapshot.ram, snapshot.ram_size, snapshot.ram_digest)
    except FileNotFoundError as error:
        raise DataLoss(f"snapshot {snapshot.key} has lost its RAM file") from error
    except OSError as error:
        if error.errno in (errno.ENOMEM, errno.ENOSPC):
            raise ResourceExhausted("no memory for the snapshot's RAM") from error
        raise


async def verify_fd(descriptor: int, snapshot: Snapshot) -> None:
    """Check that a descriptor, had from another process, is this snapshot's RAM and unchangeable.

    Raises `FailedPrecondition` when it is not sealed, `DataLoss` when it is not this RAM.
    """
    if not linux.is_sealed(descriptor):
        raise FailedPrecondition("the RAM descriptor is not a sealed memfd")
    if os.fstat(descriptor).st_size != snapshot.ram_size or (
        await in_thread(sparse.digest, descriptor, snapshot.ram_size) != snapshot.ram_digest
    ):
        raise DataLoss(f"the RAM descriptor does not hold snapshot {snapshot.key}")
