"""What tags meant when a registry was last asked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hostlib import failpoint, records
from hostlib.errors import ThawError
from hostlib.tasks import in_thread
from images import reference

log = logging.getLogger(__name__)

MAX_TAGS: Final = 4096
KIND: Final = "tags"
VERSION: Final = 1


class TagCache:
    """Digests by name with tag, each with the moment of its answer; the oldest go first.

    Kept in one record, so that a daemon that starts need not ask anew. The record is worth no more
    than the question: one that is lost or damaged is an empty one.
    """

    def __init__(
        self, life: float, path: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`life` is in seconds; 0 keeps nothing. Without a `path` all is in memory alone."""
        self._life = life
        self._path = path
        # The clock of the wall, since other clocks end with the machine. One that was set back
        # makes answers of the future, which are no good.
        self._clock = clock
        self._found: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._saving = asyncio.Lock()
        self._changed = False

    def load(self) -> None:
        """Read the record. Blocking; before anything else, once."""
        if self._path is None or self._life <= 0:
            return
        try:
            records.sweep(self._path.parent)
            tags = records.read(self._path, KIND, VERSION).get("tags")
        except FileNotFoundError:
            return
        except (ThawError, OSError) as error:
            log.warning("what tags meant is forgotten: %s", error)
            return
        found = [entry for entry in map(_entry, _items(tags)) if entry is not None]
        found.sort(key=lambda entry: entry[2])
        for name, digest, when in found[-MAX_TAGS:]:
            self._found[name] = (digest, when)

    async def put(self, name: str, digest: str) -> None:
        """Remember an answer of this moment."""
        if self._life > 0:
            self._found[name] = (digest, self._clock())
            self._found.move_to_end(name)
            while len(self._found) > MAX_TAGS:
                self._found.popitem(last=False)
            await self._save()

    def get(self, name: str) -> str | None:
        """The digest, while it is young enough."""
        digest, when = self._found.get(name, ("", 0.0))
        return digest if digest and 0 <= self._clock() - when < self._life else None

    async def forget(self, name: str) -> None:
        if self._found.pop(name, None) is not None:
            await self._save()

    async def _save(self) -> None:
        if self._path is None:
            return
        path = self._path
        self._changed = True
        async with self._saving:
            if not self._changed:
                # Whoever was before this one has written it too.
                return
            self._changed = False
            body = {"tags": {name: list(entry) for name, entry in self._found.items()}}
            try:
                await failpoint.hit("tags.save")
                await in_thread(lambda: records.write(path, KIND, VERSION, body, durable=False))
            except (ThawError, OSError) as error:
                log.warning("what tags mean is not kept for the next start: %s", error)


def _items(tags: Any) -> list[tuple[Any, Any]]:
    return list(tags.items()) if isinstance(tags, dict) else []


def _entry(item: tuple[Any, Any]) -> tuple[str, str, float] | None:
    match item:
        case (str(name), [str(digest), int() | float() as when]) if reference.is_digest(digest):
            return name, digest, float(when)
    return None
