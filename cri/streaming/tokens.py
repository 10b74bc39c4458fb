"""Tokens of one-shot URLs: who knows one may do, once and soon, what it was given for."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cri.streaming.requests import Attach, Exec, Forward, Request
from hostlib.errors import NotFound, ResourceExhausted

LIFETIME: Final = 60.0
"""Seconds; Kubernetes' streaming library has the same."""
MOST: Final = 1000
"""Unused tokens at a time; as in Kubernetes' streaming library."""

PATHS: Final[dict[type, str]] = {Exec: "exec", Attach: "attach", Forward: "portforward"}

_NAME_BYTES: Final = 9
_NAME_LENGTH: Final = 12
_SECRET_BYTES: Final = 24
"""192 bits."""


@dataclass(frozen=True)
class _Entry:
    secret: str
    request: Request
    expires: float


class Tokens:
    """The tokens that were given out and not used.

    A token is a name, by which it is looked up, and a secret, which is compared in constant time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # In the order of their expiry.
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def issue(self, request: Request) -> str:
        """The path of a new URL. Raises `ResourceExhausted` when 1,000 are unused."""
        self._expire()
        if len(self._entries) >= MOST:
            raise ResourceExhausted(
                "maximum number of in-flight requests exceeded",
                hint=f"{MOST} streaming URLs are unused; they expire within {LIFETIME:g} s",
            )
        name = secrets.token_urlsafe(_NAME_BYTES)
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        self._entries[name] = _Entry(secret, request, self._clock() + LIFETIME)
        return f"/{PATHS[type(request)]}/{name}{secret}"

    def take(self, path: str) -> Request:
        """What the path of a URL stands for, once. Raises `NotFound`."""
        self._expire()
        kind, _, token = path.removeprefix("/").partition("/")
        name, secret = token[:_NAME_LENGTH], token[_NAME_LENGTH:]
        entry = self._entries.get(name)
        if (
            entry is None
            or not hmac.compare_digest(entry.secret.encode(), secret.encode())
            or kind != PATHS[type(entry.request)]
        ):
            raise NotFound("404 page not found")
        del self._entries[name]
        return entry.request

    def _expire(self) -> None:
        now = self._clock()
        while self._entries:
            name = next(iter(self._entries))
            if self._entries[name].expires > now:
                return
            del self._entries[name]
