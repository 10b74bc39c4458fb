"""The guest image as a value: where its files lie, and what they hash to."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hostlib import linux, records
from hostlib.errors import DataLoss, FailedPrecondition
from vmm import sparse

GUEST_KIND: Final = "thaw.guest-image"
GUEST_VERSION: Final = 1

_FILES: Final = ("vmlinuz", "initramfs.cpio", "rehearsal.squashfs", "scratch.ext4")


def file_sha256(path: Path) -> str:
    """Blocking: call it in a thread for more than a few KB."""
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _digest(path: Path) -> str:
    if path.suffix != ".ext4":
        return file_sha256(path)
    # A disk of 10 GiB, nearly all of it holes.
    with open(path, "rb") as source:
        return sparse.digest(source.fileno(), path.stat().st_size)


@dataclass(frozen=True)
class GuestImage:
    """What a microVM boots from; made by `vmm.guest_image.build`."""

    folder: Path
    kernel_version: str
    agent: str
    """sha256 of the agent's binary."""
    inputs: str
    hashes: dict[str, str]
    sizes: dict[str, int]

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        return self.folder / "initramfs.cpio"

    @property
    def rehearsal(self) -> Path:
        return self.folder / "rehearsal.squashfs"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch.ext4"

    @classmethod
    def describe(cls, folder: Path, kernel_version: str, agent: str, inputs: str) -> GuestImage:
        """The image whose files were just written into `folder`; hashes them (blocking)."""
        return cls(
            folder,
            kernel_version,
            agent,
            inputs,
            {name: _digest(folder / name) for name in _FILES},
            {name: (folder / name).stat().st_size for name in _FILES},
        )

    @classmethod
    def load(cls, folder: Path) -> GuestImage:
        """Read `folder`'s record and check that its files are there and of the recorded size.

        Raises `FailedPrecondition` when there is no image, `DataLoss` when it is not whole.
        """
        try:
            body = records.read(folder / "guest.json", GUEST_KIND, GUEST_VERSION)
        except FileNotFoundError as error:
            raise FailedPrecondition(
                f"no guest image in {folder}", hint="build it: make setup"
            ) from error
        try:
            image = cls(
                folder,
                str(body["kernel_version"]),
                str(body["agent"]),
                str(body["inputs"]),
                {name: str(body["hashes"][name]) for name in _FILES},
                {name: int(body["sizes"][name]) for name in _FILES},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataLoss(f"{folder}/guest.json lacks {error}") from error
        for name, size in image.sizes.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                raise DataLoss(
                    f"guest image file {path} is missing or damaged", hint="rebuild: make setup"
                )
        return image

    @contextlib.contextmanager
    def boot_files(self) -> Iterator[tuple[int, int]]:
        """Descriptors of kernel and initramfs that a worker can read alone; closed at the end.

        Raises `FailedPrecondition` when one is gone.
        """
        with contextlib.ExitStack() as opened:
            found = []
            for path in (self.kernel, self.initramfs):
                try:
                    found.append(linux.open_read_only(str(path)))
                except OSError as error:
                    raise FailedPrecondition(
                        f"the guest image has lost {path}: {error.strerror}",
                        hint="build it again: make setup",
                    ) from error
                opened.callback(os.close, found[-1])
            yield found[0], found[1]

    def to_record(self) -> dict[str, Any]:
        return {
            "kernel_version": self.kernel_version,
            "agent": self.agent,
            "inputs": self.inputs,
            "hashes": self.hashes,
            "sizes": self.sizes,
        }
