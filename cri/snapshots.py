"""Base snapshots: baked when they are wanted, one for a shape, their RAM held as a sealed memfd."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cri.vms import Wire, Zygote
from hostlib import failpoint, linux, records
from hostlib.errors import FailedPrecondition, ThawError
from hostlib.tasks import SingleFlight, in_thread

log = logging.getLogger(__name__)

Progress = Callable[[Wire], None]

STATUS_KIND: Final = "bake"


@dataclass
class Snapshot:
    """A baked shape. `ram` is a descriptor that this process owns."""

    shape: str
    key: str
    path: Path
    ram: int
    accelerator: str = ""
    accelerator_reason: str = ""
    warnings: tuple[str, ...] = ()


@dataclass
class BakeState:
    """What Status says while a shape is not ready."""

    phase: str = "waiting"
    fraction: float = 0.0
    error: str = ""
    listeners: set[Progress] = field(default_factory=set)


class Snapshots:
    """Snapshots by shape. A bake is a single flight; one that failed is tried again if asked."""

    def __init__(self, state: Path, zygote: Zygote) -> None:
        self._status_file = state / "bake.json"
        self._zygote = zygote
        self._ready: dict[str, Snapshot] = {}
        self._flights: SingleFlight[Snapshot] = SingleFlight()
        self._states: dict[str, BakeState] = {}
        self._spare: dict[str, int] = {}

    def ready(self, shape: str) -> Snapshot | None:
        return self._ready.get(shape)

    def all(self) -> list[Snapshot]:
        return list(self._ready.values())

    def state(self, shape: str) -> BakeState:
        return self._states.setdefault(shape, BakeState())

    def wants(self, key: str) -> bool:
        """Whether RAM of that snapshot is still to be offered."""
        return key not in self._spare

    def offer(self, key: str, ram: int) -> None:
        """RAM that an adopted shim holds, to be used should it be what its key promises.

        The descriptor is this object's from now on."""
        if key in self._spare or not linux.is_sealed(ram):
            os.close(ram)
        else:
            self._spare[key] = ram

    async def ensure(self, shape: str, progress: Progress | None = None) -> Snapshot:
        """The snapshot of `shape`, baked if need be. `progress` gets the bake's events."""
        if (found := self._ready.get(shape)) is not None:
            return found
        state = self.state(shape)
        if progress is not None:
            state.listeners.add(progress)
        try:
            return await self._flights.run(shape, lambda: self._bake(shape, state))
        finally:
            if progress is not None:
                state.listeners.discard(progress)

    async def _bake(self, shape: str, state: BakeState) -> Snapshot:
        started = time.monotonic()
        state.error, state.phase, state.fraction = "", "waiting", 0.0
        try:
            await failpoint.hit("snapshot.bake")
            snapshot = await self._run(shape, state)
        except ThawError as error:
            state.error = str(error)
            self._write_status(shape, state)
            raise
        state.phase, state.fraction = "done", 1.0
        self._write_status(shape, state)
        self._ready[shape] = snapshot
        log.info(
            "snapshot %s of shape %s is ready after %.1f s (%s: %s)",
            snapshot.key[:12],
            shape,
            time.monotonic() - started,
            snapshot.accelerator,
            snapshot.accelerator_reason,
        )
        for warning in snapshot.warnings:
            log.warning("%s", warning)
        return snapshot

    async def _run(self, shape: str, state: BakeState) -> Snapshot:
        def progress(phase: str, fraction: float) -> None:
            if phase != state.phase:
                log.info("baking shape %s: %s", shape, phase)
            state.phase, state.fraction = phase, fraction
            self._write_status(shape, state)
            for listener in list(state.listeners):
                listener({"phase": phase, "fraction": fraction})

        baked = await self._zygote.bake(shape, progress)
        key, path = str(baked["key"]), Path(str(baked["path"]))
        ram = await self._ram(key, path)
        accelerator = baked.get("accelerator") or {}
        return Snapshot(
            shape,
            key,
            path,
            ram,
            str(accelerator.get("name", "")),
            str(accelerator.get("reason", "")),
            tuple(str(each) for each in accelerator.get("warnings", ())),
        )

    async def _ram(self, key: str, path: Path) -> int:
        """The RAM of the snapshot: an adopted shim's where it is sound, else loaded."""
        spare = self._spare.pop(key, None)
        if spare is not None:
            valid = False
            try:
                valid = await self._zygote.verify(path, key, spare)
            except ThawError as error:
                log.info("RAM of snapshot %s could not be checked: %s", key, error)
            finally:
                if not valid:
                    os.close(spare)
            if valid:
                return spare
        loaded, ram = await self._zygote.load(path)
        if loaded != key:
            os.close(ram)
            raise FailedPrecondition(
                f"snapshot {path} has key {loaded}, not {key}", hint="run `thaw bake` again"
            )
        return ram

    def _write_status(self, shape: str, state: BakeState) -> None:
        body = {
            "shape": shape,
            "phase": state.phase,
            "fraction": state.fraction,
            "error": state.error,
        }
        # For people who look; nothing is decided by it.
        with contextlib.suppress(OSError):
            records.write(self._status_file, STATUS_KIND, 1, body, durable=False)

    async def close(self) -> None:
        """Let go of every descriptor."""
        held = [each.ram for each in self._ready.values()] + list(self._spare.values())
        self._ready.clear()
        self._spare.clear()
        for ram in held:
            await in_thread(os.close, ram)
