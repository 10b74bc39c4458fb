"""Baked snapshots: what their key holds, how they lie on disk, when they are refused.

::

    snapshots/<key>/snapshot.json    the record, written last
                    devices          the migration stream without RAM
                    ram              guest memory, sparse
                    scratch          the scratch disk that the guest has mounted, sparse
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from hostlib import linux, records
from hostlib.errors import DataLoss, FailedPrecondition
from hostlib.tasks import in_thread
from vmm import sparse
from vmm.channel import SERIAL
from vmm.guest import GuestImage, file_sha256
from vmm.qemu.argv import fingerprint
from vmm.qemu.build import QemuBuild
from vmm.shape import MachineShape

KIND: Final = "thaw.snapshot"
VERSION: Final = 2
FORMAT: Final = 2
"""Raised when a bake leaves another state in the guest from the same inputs."""

_BAKING: Final = ".baking-"


@dataclass(frozen=True)
class Inputs:
    """All that a base snapshot depends on."""

    qemu_version: str
    qemu_digest: str
    accel: str
    shape: MachineShape
    machine: tuple[str, ...]
    kernel: str
    initramfs: str
    agent: str
    scratch: str
    channel: str = SERIAL
    format: int = FORMAT

    @classmethod
    def of(
        cls,
        qemu: QemuBuild,
        accel: str,
        shape: MachineShape,
        guest: GuestImage,
        channel: str = SERIAL,
    ) -> Inputs:
        return cls(
            qemu.version,
            qemu.digest,
            accel,
            shape,
            tuple(fingerprint(accel, shape, channel)),
            guest.hashes["vmlinuz"],
            guest.hashes["initramfs.cpio"],
            guest.agent,
            guest.hashes["scratch.ext4"],
            channel,
        )

    def to_record(self) -> dict[str, Any]:
        return {
            "qemu_version": self.qemu_version,
            "qemu_digest": self.qemu_digest,
            "accel": self.accel,
            "vcpus": self.shape.vcpus,
            "memory_mib": self.shape.memory_mib,
            "machine": list(self.machine),
            "kernel": self.kernel,
            "initramfs": self.initramfs,
            "agent": self.agent,
            "scratch": self.scratch,
            "channel": self.channel,
            "format": self.format,
        }

    @classmethod
    def from_record(cls, body: dict[str, Any]) -> Inputs:
        return cls(
            str(body["qemu_version"]),
            str(body["qemu_digest"]),
            str(body["accel"]),
            MachineShape(int(body["vcpus"]), int(body["memory_mib"])),
            tuple(str(item) for item in body["machine"]),
            str(body["kernel"]),
            str(body["initramfs"]),
            str(body["agent"]),
            str(body["scratch"]),
            str(body["channel"]),
            int(body["format"]),
        )

    @property
    def key(self) -> str:
        """sha256 over the inputs in canonical form."""
        text = json.dumps(self.to_record(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: Inputs) -> list[str]:
        """The names of the inputs in which the two differ."""
        mine, theirs = self.to_record(), other.to_record()
        return [name for name in mine if mine[name] != theirs[name]]


@dataclass(frozen=True)
class Snapshot:
    """A published snapshot; its files never change."""

    folder: Path
    inputs: Inputs
    ram_size: int
    ram_digest: str
    devices_size: int
    devices_digest: str
    scratch_size: int
    scratch_digest: str

    @property
    def key(self) -> str:
        return self.inputs.key

    @property
    def shape(self) -> MachineShape:
        return self.inputs.shape

    @property
    def ram(self) -> Path:
        return self.folder / "ram"

    @property
    def devices(self) -> Path:
        return self.folder / "devices"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def to_record(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "inputs": self.inputs.to_record(),
            "ram_size": self.ram_size,
            "ram_digest": self.ram_digest,
            "devices_size": self.devices_size,
            "devices_digest": self.devices_digest,
            "scratch_size": self.scratch_size,
            "scratch_digest": self.scratch_digest,
        }

    def check_qemu(self, qemu: QemuBuild, accel: str) -> None:
        """Refuse, with `FailedPrecondition`, another QEMU, accelerator or machine than baked."""
        expected = fingerprint(self.inputs.accel, self.shape, self.inputs.channel)
        wanted = [
            ("QEMU version", self.inputs.qemu_version, qemu.version),
            ("QEMU binary", self.inputs.qemu_digest, qemu.digest),
            ("accelerator", self.inputs.accel, accel),
            ("machine", list(self.inputs.machine), expected),
            ("format", self.inputs.format, FORMAT),
        ]
        for name, baked, found in wanted:
            if baked != found:
                raise FailedPrecondition(
                    f"snapshot {self.key[:12]} was baked with another {name}",
                    hint="bake it again: thaw bake",
                )


def _parse(folder: Path, body: dict[str, Any]) -> Snapshot:
    try:
        snapshot = Snapshot(
            folder,
            Inputs.from_record(body["inputs"]),
            int(body["ram_size"]),
            str(body["ram_digest"]),
            int(body["devices_size"]),
            str(body["devices_digest"]),
            int(body["scratch_size"]),
            str(body["scratch_digest"]),
        )
        key = body["key"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataLoss(f"{folder}/snapshot.json is damaged") from error
    if snapshot.key != key:
        raise DataLoss(f"snapshot {folder.name} does not match its own key")
    return snapshot


def _check_sparse(path: Path, size: int, digest: str) -> None:
    with open(path, "rb") as source:
        if sparse.digest(source.fileno(), size) != digest:
            raise DataLoss(f"snapshot file {path} is damaged", hint="thaw bake")


def _load(folder: Path, whole: bool) -> Snapshot:
    try:
        body = records.read(folder / "snapshot.json", KIND, VERSION)
    except FileNotFoundError as error:
        raise FailedPrecondition(f"there is no snapshot in {folder}", hint="thaw bake") from error
    snapshot = _parse(folder, body)
    for path, size in (
        (snapshot.ram, snapshot.ram_size),
        (snapshot.devices, snapshot.devices_size),
        (snapshot.scratch, snapshot.scratch_size),
    ):
        if not path.is_file() or path.stat().st_size != size:
            raise DataLoss(f"snapshot file {path} is missing or cut short", hint="thaw bake")
    if file_sha256(snapshot.devices) != snapshot.devices_digest:
        raise DataLoss(f"snapshot file {snapshot.devices} is damaged", hint="thaw bake")
    if whole:
        _check_sparse(snapshot.ram, snapshot.ram_size, snapshot.ram_digest)
        _check_sparse(snapshot.scratch, snapshot.scratch_size, snapshot.scratch_digest)
    return snapshot


def read(folder: Path, expected: Inputs | None = None, *, whole: bool = False) -> Snapshot:
    """Read and check a snapshot: record, sizes, and the devices' digest. Blocking.

    The digests of RAM and scratch disk are checked only if the `whole` is asked for; `vmm.ram.load`
    checks the RAM's again. Raises `DataLoss` when it is damaged, `FailedPrecondition` when there is
    none or it was baked from other inputs.
    """
    snapshot = _load(folder, whole)
    if expected is not None and (changed := snapshot.inputs.differences(expected)):
        raise FailedPrecondition(
            f"snapshot {snapshot.key[:12]} was baked with another {', '.join(changed)}",
            hint="bake it again: thaw bake",
        )
    return snapshot


async def load(folder: Path, expected: Inputs | None = None, *, whole: bool = False) -> Snapshot:
    """`read` in a thread."""
    return await in_thread(partial(read, folder, expected, whole=whole))


def staging(snapshots: Path, key: str) -> Path:
    """A new folder to bake into, beside the published ones."""
    snapshots.mkdir(parents=True, exist_ok=True, mode=0o700)
    pid = os.getpid()
    folder = snapshots / f"{_BAKING}{key[:16]}-{pid}-{linux.start_time(pid)}"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    return folder


def _publish(staged: Path, snapshot: Snapshot) -> Snapshot:
    records.write(staged / "snapshot.json", KIND, VERSION, snapshot.to_record(), durable=True)
    if snapshot.folder.exists():
        # Damaged, or it would have been used. Processes that map it keep their files.
        shutil.rmtree(snapshot.folder)
    os.rename(staged, snapshot.folder)
    records.sync_folder(snapshot.folder.parent)
    return snapshot


async def publish(staged: Path, snapshot: Snapshot) -> Snapshot:
    """Make a baked folder the snapshot of its key, atomically and durably."""
    return await in_thread(_publish, staged, snapshot)


def sweep(snapshots: Path) -> None:
    """Remove what bakes that died left behind; the folders of those that live stay. Blocking."""
    for entry in snapshots.glob(f"{_BAKING}*"):
        *_, pid, start = entry.name.split("-")
        alive = pid.isdigit() and str(linux.start_time(int(pid))) == start
        if not alive:
            shutil.rmtree(entry, ignore_errors=True)
