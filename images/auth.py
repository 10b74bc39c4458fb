"""What registries ask for before they answer: basic and bearer challenges (RFC 9110, section 11;
distribution's token specification)."""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx

from hostlib.errors import InvalidArgument, Unauthenticated
from images.model import Auth

MAX_TOKENS: Final = 64
MAX_TOKEN_ANSWER: Final = 256 * 1024
_DEFAULT_LIFE: Final = 60.0
"""Seconds that a token without ``expires_in`` lives, by the token specification."""

_LONGEST_LIFE: Final = 86400

_PARAMETER: Final = re.compile(r'\s*,?\s*([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_SCHEME: Final = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)(?=\s|$)")


@dataclass(frozen=True)
class Challenge:
    """One challenge of a WWW-Authenticate header."""

    scheme: str
    parameters: dict[str, str]


def challenges(header: str) -> list[Challenge]:
    """The challenges in `header`; what is malformed is left out."""
    found: list[Challenge] = []
    position = 0
    while match := _SCHEME.match(header, position):
        position = match.end()
        parameters: dict[str, str] = {}
        while part := _PARAMETER.match(header, position):
            name, quoted, plain = part.groups()
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
            parameters[name.lower()] = value
            position = part.end()
        found.append(Challenge(match.group(1).lower(), parameters))
    return found


def credentials(auth: Auth | None) -> tuple[str, str] | None:
    """User and password. Raises `InvalidArgument` for ``auth`` that is no base64 of them."""
    if auth is None:
        return None
    if auth.username or auth.password:
        return auth.username, auth.password
    if not auth.auth:
        return None
    try:
        user, colon, password = base64.b64decode(auth.auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InvalidArgument("the registry credentials' auth field is no base64") from error
    if not colon:
        raise InvalidArgument("the registry credentials' auth field holds no user:password")
    return user, password.rstrip("\0")


def applies(auth: Auth | None, netloc: str, domain: str) -> bool:
    """Whether credentials meant for `auth.server_address`, or, without it, for the registry
    `domain`, may go to the host `netloc`."""
    if auth is None:
        return False
    address = auth.server_address
    if not address:
        return netloc in (domain, "registry-1.docker.io" if domain == "docker.io" else domain)
    wanted = urlsplit(address if "://" in address else f"//{address}").netloc
    docker = ("index.docker.io", "docker.io", "registry-1.docker.io")
    return wanted == netloc or (wanted in docker and netloc in docker)


def _basic(pair: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(f"{pair[0]}:{pair[1]}".encode()).decode()


Fetch = Callable[[httpx.Request], Awaitable[tuple[int, bytes]]]


class Tokens:
    """Answers challenges for one set of credentials; keeps at most `MAX_TOKENS` tokens."""

    def __init__(self, auth: Auth | None) -> None:
        self._auth = auth
        self._pair = credentials(auth)
        self._kept: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()

    def kept(self, base: str, scope: str) -> str | None:
        """The Authorization header that worked last for `base` and `scope`, while it lives."""
        found = self._kept.get((base, scope))
        if found is None or found[1] < time.monotonic():
            return None
        return found[0]

    def forget(self, base: str, scope: str) -> None:
        self._kept.pop((base, scope), None)

    def _keep(self, base: str, scope: str, header: str, life: float) -> str:
        self._kept[base, scope] = (header, time.monotonic() + life)
        self._kept.move_to_end((base, scope))
        while len(self._kept) > MAX_TOKENS:
            self._kept.popitem(last=False)
        return header

    async def answer(
        self, header: str, base: str, scope: str, *, trusted: bool, fetch: Fetch
    ) -> str:
        """The Authorization header that answers the challenge `header` of the host at `base`.

        Credentials are used only if it is `trusted` with them. Raises `Unauthenticated`.
        """
        found = {item.scheme: item for item in challenges(header)}
        pair = self._pair if trusted else None
        if trusted and self._auth is not None and self._auth.registry_token:
            return self._keep(base, scope, f"Bearer {self._auth.registry_token}", 3600)
        if bearer := found.get("bearer"):
            token, life = await self._token(bearer, base, scope, pair, trusted, fetch)
            return self._keep(base, scope, f"Bearer {token}", life)
        if "basic" in found and pair is not None:
            return self._keep(base, scope, _basic(pair), 3600)
        raise Unauthenticated(
            f"{urlsplit(base).netloc} wants credentials",
            hint="log in: give a user name and password, or an imagePullSecret",
        )

    async def _token(
        self,
        challenge: Challenge,
        base: str,
        scope: str,
        pair: tuple[str, str] | None,
        trusted: bool,
        fetch: Fetch,
    ) -> tuple[str, float]:
        realm = challenge.parameters.get("realm", "")
        try:
            parts = urlsplit(realm)
        except ValueError:
            parts = urlsplit("")
        plain_registry = urlsplit(base).scheme == "http"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Unauthenticated(f"{urlsplit(base).netloc} names no usable token server")
        if parts.scheme == "http" and not plain_registry:
            raise Unauthenticated(
                f"{urlsplit(base).netloc} wants credentials sent to {parts.netloc} in the clear"
            )
        fields = {"service": challenge.parameters.get("service", ""), "scope": scope}
        identity = self._auth.identity_token if trusted and self._auth else ""
        if identity:
            fields |= {
                "grant_type": "refresh_token",
                "refresh_token": identity,
                "client_id": "thaw",
            }
            request = httpx.Request("POST", realm, data=fields)
        else:
            headers = {"Authorization": _basic(pair)} if pair else {}
            request = httpx.Request(
                "GET", httpx.URL(realm).copy_merge_params(fields), headers=headers
            )
        status, body = await fetch(request)
        if status in (400, 401, 403):
            raise Unauthenticated(
                f"{parts.netloc} refused the credentials ({status})"
                if pair or identity
                else f"{parts.netloc} gives no token without credentials ({status})",
                hint="check user name and password, and that they may read this image",
            )
        return _read_token(status, body, parts.netloc)


def _read_token(status: int, body: bytes, server: str) -> tuple[str, float]:
    try:
        data = httpx.Response(status, content=body).json() if status == 200 else None
    except ValueError:
        data = None
    token = (data.get("token") or data.get("access_token")) if isinstance(data, dict) else None
    if not isinstance(token, str) or not token or not token.isascii() or "\n" in token:
        raise Unauthenticated(f"token server {server} answered {status} without a token")
    assert isinstance(data, dict)
    life = data.get("expires_in")
    seconds = _DEFAULT_LIFE
    if isinstance(life, int | float) and life > 0:
        seconds = float(min(life, _LONGEST_LIFE))
    # A token that ends while a request is on its way would cost a failed request.
    return token, max(seconds - 5, 1)
