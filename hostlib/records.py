"""Versioned JSON records, written atomically: the only form in which Thaw keeps state on disk.

A record is one file, one JSON object ``{"kind": ..., "version": N, ...}``. It is written to a
temporary file in the same folder and renamed, so that a reader, or a process that starts after a
crash, sees the old record or the new one and never a part. An unknown newer version is refused,
never guessed.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Final

from hostlib.errors import DataLoss, FailedPrecondition

TEMPORARY_SUFFIX: Final = ".tmp"
"""What a crash can leave behind; `sweep` removes it."""

MAX_BYTES: Final = 32 * 1024 * 1024


def write(path: Path, kind: str, version: int, body: dict[str, Any], *, durable: bool) -> None:
    """Write the record, atomically.

    `durable` makes it survive a power cut (fsync of the file and its folder): right for what lies
    under root, needless for what lies under state, which a reboot empties anyway.
    """
    data = json.dumps({"kind": kind, "version": version, **body}, separators=(",", ":"))
    write_bytes(path, data.encode(), durable=durable)


def write_bytes(path: Path, data: bytes, *, durable: bool, mode: int = 0o600) -> None:
    """Write a file atomically, as `write` does for records."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as sink:
            sink.write(data)
            if durable:
                sink.flush()
                os.fsync(sink.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path, kind: str, version: int) -> dict[str, Any]:
    """The record's body.

    Raises FileNotFoundError, `DataLoss` when the file is no record of this kind, and
    `FailedPrecondition` when a newer Thaw wrote it.
    """
    with open(path, "rb") as source:
        data = source.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DataLoss(f"record {path} is larger than {MAX_BYTES} bytes")
    try:
        body = json.loads(data)
    except ValueError as error:
        raise DataLoss(f"record {path} is no JSON") from error
    if not isinstance(body, dict) or body.get("kind") != kind:
        raise DataLoss(f"record {path} is not of kind {kind}")
    found = body.pop("version", None)
    del body["kind"]
    if not isinstance(found, int):
        raise DataLoss(f"record {path} has no version")
    if found > version:
        raise FailedPrecondition(
            f"record {path} has version {found}; this Thaw knows versions up to {version}",
            hint="a newer Thaw wrote it: upgrade, or use another root and state",
        )
    return {"_version": found, **body} if found != version else body


def sweep(folder: Path) -> None:
    """Remove temporary files that a crash left in `folder`."""
    for entry in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        entry.unlink(missing_ok=True)
