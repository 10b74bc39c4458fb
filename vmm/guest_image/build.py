"""Puts the guest image together: one folder with all that a microVM boots from.

The folder holds ``vmlinuz``, ``initramfs.cpio``, ``rehearsal.squashfs``, ``scratch.ext4`` and
``guest.json``, the record of their hashes. The same inputs give the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from hostlib import failpoint, records
from hostlib.errors import FailedPrecondition, ThawError
from hostlib.tasks import in_thread
from vmm.guest import GUEST_KIND, GUEST_VERSION, GuestImage, file_sha256
from vmm.guest_image import cpio, kernel, modules, rehearsal, scratch

RECIPE: Final = 4
"""Raised when this package makes other files from the same inputs."""

_LOCK_POLL: Final = 0.2

_FOLDERS: Final = ("dev", "proc", "sys", "run", "tmp", "etc", "modules")


def initramfs(agent: bytes, packed: list[tuple[str, bytes]]) -> bytes:
    """The archive: the agent as /init, device nodes, and modules in load order.

    `packed` holds (name, ELF image) in load order; ``/modules/order`` lists their paths.
    """
    entries = [cpio.folder(name) for name in _FOLDERS]
    entries += [
        cpio.char_device("dev/console", 5, 1),
        cpio.char_device("dev/null", 1, 3, 0o666),
        cpio.char_device("dev/kmsg", 1, 11),
        cpio.file("init", agent, 0o755),
    ]
    paths: list[str] = []
    for name, data in packed:
        entries.append(cpio.file(f"modules/{name}.ko", data))
        paths.append(f"/modules/{name}.ko\n")
    entries.append(cpio.file("modules/order", "".join(paths).encode()))
    return cpio.archive(entries)


def _input_digest(files: tuple[Path, ...], scratch_size: int) -> str:
    parts = (str(RECIPE), *(file_sha256(path) for path in files), str(scratch_size))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _current(out: Path, inputs: str) -> GuestImage | None:
    """The image in `out` when it was made of these inputs and is whole."""
    try:
        image = GuestImage.load(out)
    except (ThawError, OSError):
        return None
    return image if image.inputs == inputs else None


def _pack_modules(folder: Path) -> list[tuple[str, bytes]]:
    order, _ = modules.read_folder(folder)
    return [(modules.name_of(path), modules.unpack(folder / path)) for path in order]


@contextlib.asynccontextmanager
async def _alone(work: Path) -> AsyncIterator[None]:
    """One build at a time in `work`, whichever process runs it; the lock goes with the process."""
    lock = os.open(work / "guest.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_POLL)
        yield
    finally:
        os.close(lock)


async def build(
    out: Path,
    agent: Path,
    *,
    work: Path | None = None,
    package: Path | None = None,
    scratch_size: int = scratch.DEFAULT_SIZE,
    refresh: bool = False,
) -> GuestImage:
    """Build the guest image into `out`, or find it up to date.

    `agent` is its binary, with the rehearsal's program beside it. `work` keeps downloads (default:
    the folder above `out`); `package` is a kernel .deb to use instead of the mirror's. Raises
    `FailedPrecondition` when one of the programs is missing.
    """
    program = agent.with_name(rehearsal.PROGRAM)
    for path in (agent, program):
        if not path.is_file():
            raise FailedPrecondition(f"{path} is missing", hint="build it: make setup")
    out.mkdir(parents=True, exist_ok=True)
    work = work or out.parent
    work.mkdir(parents=True, exist_ok=True)
    async with _alone(work):
        return await _build(out, agent, program, work, package, scratch_size, refresh)


async def _build(
    out: Path,
    agent: Path,
    program: Path,
    work: Path,
    package: Path | None,
    scratch_size: int,
    refresh: bool,
) -> GuestImage:
    found = package or await kernel.fetch(work, refresh=refresh)
    inputs = await in_thread(_input_digest, (found, agent, program), scratch_size)
    if (image := await in_thread(_current, out, inputs)) is not None:
        return image
    await failpoint.hit("guest_image.build")
    unpacked = work / "kernel"
    try:
        built = await kernel.unpack(found, unpacked)
        binary = await in_thread(agent.read_bytes)
        packed = await in_thread(_pack_modules, built.modules)
        archive = await in_thread(initramfs, binary, packed)
        await in_thread(
            lambda: records.write_bytes(out / "initramfs.cpio", archive, durable=False, mode=0o644)
        )
        await in_thread(shutil.copyfile, built.image, out / ".vmlinuz.tmp")
        os.rename(out / ".vmlinuz.tmp", out / "vmlinuz")
        await rehearsal.build(await in_thread(program.read_bytes), out / "rehearsal.squashfs")
        await scratch.build(out / "scratch.ext4", scratch_size)
    finally:
        await in_thread(shutil.rmtree, unpacked, True)
    image = await in_thread(
        GuestImage.describe, out, built.version, hashlib.sha256(binary).hexdigest(), inputs
    )
    records.write(out / "guest.json", GUEST_KIND, GUEST_VERSION, image.to_record(), durable=False)
    return image
