"""What tags meant when a registry was last asked."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

MAX_TAGS: Final = 4096


class TagCache:
    """Digests by name with tag, each with the moment of its answer; the oldest go first.

    Only in memory: a daemon that starts asks anew.
    """

    def __init__(self, life: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`life` is in seconds; 0 keeps nothing."""
        self._life = life
        self._clock = clock
        self._found: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def put(self, name: str, digest: str) -> None:
        if self._life > 0:
            self._found[name] = (digest, self._clock())
            self._found.move_to_end(name)
            while len(self._found) > MAX_TAGS:
                self._found.popitem(last=False)

    def get(self, name: str) -> str | None:
        """The digest, while it is young enough."""
        digest, when = self._found.get(name, ("", 0.0))
        if not digest or self._clock() - when >= self._life:
            return None
        return digest

    def forget(self, name: str) -> None:
        self._found.pop(name, None)
