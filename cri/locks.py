"""Locks on root and state: one daemon to each."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from hostlib.errors import FailedPrecondition


def lock(folder: Path, noun: str) -> int:
    """Lock `folder`, made where it is missing; the lock lives as long as the descriptor.

    Raises `FailedPrecondition` when another daemon has it, or when the folder cannot be made.
    """
    try:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FailedPrecondition(
            f"{noun} {folder} cannot be used: {error.strerror}",
            hint=f"thawd runs as root and needs a --{noun} that it can write",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise FailedPrecondition(
            f"another thawd (pid {holder or 'unknown'}) uses {noun} {folder}",
            hint=f"end it, or choose another --{noun}",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
