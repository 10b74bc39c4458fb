"""Volumes of a pod that live in its guest instead of the shared folder.

A published folder (`shim.published`) is copied, and copied anew when the host exchanges it, so that
inotify fires in the guest. An emptyDir is the guest's own, in memory, in huge pages or on its
scratch disk: its containers share it, with all that a file system can do, and it ends with the VM.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
from typing import Any, Final

from hostlib import failpoint
from hostlib.errors import ThawError, Unavailable
from hostlib.inotify import Inotify
from hostlib.tasks import Tasks, in_thread
from shim import published
from shim.layers import Machine
from shim.sandbox import OwnVolume, SharedMount

log = logging.getLogger(__name__)

FOLDER: Final = "/run/thaw/volumes"
"""Where volumes are in the guest."""

_SETTLE: Final = 0.02
"""Seconds: an exchange is several changes."""

_POLL: Final = 10.0
"""Seconds between looks where the host gives no inotify instance, and after a failure."""

_ATTEMPTS: Final = 20
_MAX_HOST_ENTRIES: Final = 1024


class _Copy:
    """One published folder and its copy in the guest."""

    def __init__(self, name: str, tree: int) -> None:
        self.name = name
        self.tree = os.dup(tree)
        self.told = ""
        self.watch = -1
        self.changed = asyncio.Event()

    async def send(self, vm: Machine, entries: list[dict[str, Any]]) -> None:
        """Bring the guest's copy up to date. Raises what the agent does."""
        digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
        if digest != self.told:
            await vm.agent.request("volume.write", {"volume": self.name, "entries": entries})
            self.told = digest

    async def read(self) -> list[dict[str, Any]]:
        """What is published now. Raises what `published.read` does."""
        for attempt in range(_ATTEMPTS):
            try:
                return await in_thread(published.read, self.tree)
            except Unavailable:
                if attempt + 1 == _ATTEMPTS:
                    raise
                await asyncio.sleep(_SETTLE)
        raise AssertionError

    def close(self) -> None:
        os.close(self.tree)


class Volumes:
    """Those of one pod."""

    def __init__(self) -> None:
        self._tasks = Tasks()
        self._inotify: Inotify | None = None
        self._copies: dict[str, tuple[_Copy, asyncio.Task[None]]] = {}
        self._own: set[str] = set()

    async def take(self, vm: Machine, mount: SharedMount, tree: int) -> str | None:
        """Have the guest hold the volume; where it is there. None for one that is to be shared.

        Raises what the agent does.
        """
        if mount.own is not None:
            return await self._take_own(vm, mount.own, tree)
        if not mount.published:
            return None
        copy = _Copy(mount.name, tree)
        try:
            # Before it is read, so that no change is missed.
            self._watch(copy)
            entries = await copy.read()
            await failpoint.hit("volume.copy")
        except BaseException as error:
            self._forget(copy)
            if not isinstance(error, ThawError):
                raise
            log.info("volume %s is shared, and its changes wake nobody: %s", mount.name, error)
            return None
        try:
            await copy.send(vm, entries)
        except BaseException:
            self._forget(copy)
            with contextlib.suppress(ThawError):
                await vm.agent.request("volume.remove", {"volume": mount.name})
            raise
        work = self._follow(vm, copy)
        self._copies[mount.name] = (copy, self._tasks.start(work, f"volume {mount.name}"))
        return f"{FOLDER}/{mount.name}"

    async def release(self, vm: Machine, name: str, *, alive: bool) -> None:
        """Give up a copy. Idempotent; nothing is done for other volumes."""
        found = self._copies.pop(name, None)
        if found is None:
            return
        copy, task = found
        task.cancel()
        await asyncio.wait([task])
        self._forget(copy)
        if alive:
            await vm.agent.request("volume.remove", {"volume": name})

    async def close(self) -> None:
        """Give up all of it; the VM has ended."""
        await self._tasks.close()
        for copy, _ in self._copies.values():
            self._forget(copy)
        self._copies.clear()
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def _watch(self, copy: _Copy) -> None:
        try:
            if self._inotify is None:
                self._inotify = Inotify()
            # By the descriptor: the folder lies in no mount namespace.
            copy.watch = self._inotify.watch(f"/proc/self/fd/{copy.tree}", copy.changed.set)
        except OSError as error:
            log.warning("volume %s is looked at every %g s: %s", copy.name, _POLL, error)

    def _forget(self, copy: _Copy) -> None:
        if self._inotify is not None:
            self._inotify.forget(copy.watch)
        copy.close()

    async def _follow(self, vm: Machine, copy: _Copy) -> None:
        failed = False
        while True:
            try:
                async with asyncio.timeout(_POLL if failed or copy.watch < 0 else None):
                    await copy.changed.wait()
                await asyncio.sleep(_SETTLE)
            except TimeoutError:
                pass
            copy.changed.clear()
            try:
                await copy.send(vm, await copy.read())
                failed = False
            except ThawError as error:
                failed = True
                log.warning("volume %s stays as it was: %s", copy.name, error)

    async def _take_own(self, vm: Machine, wanted: OwnVolume, tree: int) -> str | None:
        # What is on the host already would be hidden.
        if wanted.key not in self._own and not await in_thread(_only_folders, tree):
            return None
        name = f"own-{wanted.key}"
        await failpoint.hit("volume.make")
        await vm.agent.request(
            "volume.make",
            {
                "volume": name,
                "path": wanted.path,
                "size": wanted.size,
                "mode": wanted.mode,
                "uid": wanted.uid,
                "gid": wanted.gid,
                # Agents of former versions know no such word.
                **({"huge": True} if wanted.huge else {}),
            },
        )
        self._own.add(wanted.key)
        return f"{FOLDER}/{name}/{wanted.path}".rstrip("/")


def _only_folders(tree: int) -> bool:
    """Whether nothing but folders is there, and few of them. Blocking."""
    count = 0
    try:
        for _, folders, files, _ in os.fwalk(".", dir_fd=tree):
            count += len(folders) + 1
            if files or count > _MAX_HOST_ENTRIES:
                return False
    except OSError:
        return False
    return True
