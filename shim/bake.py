"""The bake process: makes one base snapshot and tells its starter how far it is."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostlib import failpoint, ids, linux
from hostlib.errors import InvalidArgument
from hostlib.tasks import Tasks
from shim import protocol
from shim.server import choose_version
from vmm import accel, bake
from vmm.guest import GuestImage
from vmm.shape import MachineShape

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BakeRequest:
    """What to bake; ``accel`` is ``auto`` or the name of an accelerator."""

    guest_dir: str
    snapshots_dir: str
    shape: dict[str, Any]
    accel: str
    qemu: str
    uid_base: int = ids.WORKER_UID_BASE


def shape_of(data: dict[str, Any]) -> MachineShape:
    """The machine shape in a request. Raises `InvalidArgument`."""
    try:
        return MachineShape(int(data["vcpus"]), int(data["memory_mib"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"bad machine shape {data!r}") from error


async def _bake(request: BakeRequest, connection: protocol.Connection) -> None:
    tasks = Tasks()
    events: asyncio.Queue[protocol.Wire | None] = asyncio.Queue(maxsize=256)

    def progress(phase: str, fraction: float) -> None:
        # A reader that does not keep up loses steps of a progress bar.
        if events.qsize() < 200:
            events.put_nowait({"event": "progress", "phase": phase, "fraction": fraction})

    async def send() -> None:
        while (event := await events.get()) is not None:
            await connection.send(event)

    sender = tasks.start(send(), "bake progress")
    try:
        try:
            chosen = accel.probe(request.accel)
            done = await bake.bake(
                GuestImage.load(Path(request.guest_dir)),
                shape_of(request.shape),
                snapshots=Path(request.snapshots_dir),
                accel=chosen,
                qemu=request.qemu,
                uid_base=request.uid_base,
                progress=progress,
            )
            used = bake.accelerator_of(done, chosen)
            await events.put(
                {
                    "event": "baked",
                    "key": done.key,
                    "path": str(done.folder),
                    "ram_bytes": done.ram_size,
                    "accelerator": {
                        "name": used.name,
                        "reason": used.reason,
                        "warnings": list(used.warnings),
                    },
                }
            )
        except Exception as error:
            log.warning("bake failed: %s", error, exc_info=True)
            await events.put({"event": "failed", "error": protocol.failure(0, error)["error"]})
        await events.put(None)
        await asyncio.wait([sender])
    finally:
        await tasks.close()


async def _serve(request: BakeRequest, connection: protocol.Connection) -> None:
    hello = await connection.receive()
    if hello is None:
        return
    answer = choose_version(hello.header.get("params"))
    await connection.send({"id": hello.header.get("id", 0), "result": answer})
    work = asyncio.create_task(_bake(request, connection), name="bake")
    # The end of the connection means that nobody wants the snapshot any more.
    gone = asyncio.create_task(connection.receive(), name="bake control")
    await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
    for task in (work, gone):
        task.cancel()
    await asyncio.gather(work, gone, return_exceptions=True)
    connection.close()


def main(request: BakeRequest, control: int) -> int:
    """The bake process, forked by the zygote."""
    linux.set_process_name("thaw-bake")
    failpoint.load_environment()
    sock = socket.socket(fileno=control)

    async def run() -> None:
        task = asyncio.current_task()
        assert task
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await _serve(request, protocol.Connection(sock))

    try:
        asyncio.run(run())
    except asyncio.CancelledError:
        return 1
    return 0
