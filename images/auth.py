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
from images.hosts import Host
from images.model import Auth
from images.servers import server_of

MAX_TOKENS: Final = 64
MAX_TOKEN_ANSWER: Final = 256 * 1024
_DEFAULT_LIFE: Final = 60.0
"""Seconds that a token without ``expires_in`` lives, by the token specification."""

_LONGEST_LIFE: Final = 86400

_MAX_SCOPES: Final = 8

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
    """User and password. Raises `InvalidArgument`, also for what no request could carry."""
    if auth is None:
        return None
    if auth.server_address:
        server_of(auth.server_address)
    token = auth.registry_token
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise InvalidArgument("the registry credentials' registry token is no bearer token")
    if auth.username or auth.password:
        if ":" in auth.username:
            # RFC 7617, section 2.
            raise InvalidArgument("the registry credentials' user name holds a colon")
        return auth.username, auth.password
    if not auth.auth:
        return None
    try:
        user, colon, password = base64.b64decode(auth.auth, validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument("the registry credentials' auth field is no base64") from error
    if not colon:
        raise InvalidArgument("the registry credentials' auth field holds no user:password")
    return user, password.rstrip("\0")


_DOCKER_HUB: Final = frozenset(("index.docker.io", "docker.io", "registry-1.docker.io"))


def applies(auth: Auth | None, host: Host, domain: str) -> bool:
    """Whether credentials may go to `host`, asked for content of the registry `domain`.

    Those without a server address are for the registry itself, under whatever address hosts.toml
    serves it. A mirror gets those alone whose server address names it.
    """
    if auth is None:
        return False
    own = {server_of(host.netloc), *(() if host.is_mirror else (server_of(domain),))}
    if not auth.server_address:
        return not host.is_mirror
    wanted = server_of(auth.server_address)
    return wanted in own or (wanted in _DOCKER_HUB and not own.isdisjoint(_DOCKER_HUB))


def scopes(challenge: Challenge, own: str) -> str:
    """What to ask a token for: the repositories that the challenge names, which a mirror may hold
    under another path, and never more than to pull; else `own`."""
    found = []
    for item in challenge.parameters.get("scope", "").split(" ")[:_MAX_SCOPES]:
        kind, _, rest = item.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind == "repository" and name and "pull" in actions.split(","):
            found.append(f"repository:{name}:pull")
    return " ".join(found) or own


def _basic(pair: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(f"{pair[0]}:{pair[1]}".encode()).decode()


Fetch = Callable[[httpx.Request], Awaitable[tuple[int, bytes]]]


class Tokens:
    """Answers challenges for one set of credentials; keeps at most `MAX_TOKENS` tokens."""

    def __init__(self, auth: Auth | None) -> None:
        self._auth = auth
        self._pair = credentials(auth)
        self._kept: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()

    def _withheld(self, trusted: bool) -> str:
        if trusted or self._auth is None:
            return ""
        whose = self._auth.server_address[:200] or "the registry, and this is a mirror of it"
        return f"; those given are for {whose}"

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
            f"{urlsplit(base).netloc} wants credentials{self._withheld(trusted)}",
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
        fields = {
            "service": challenge.parameters.get("service", ""),
            "scope": scopes(challenge, scope),
        }
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
            # Each scope is a parameter of its own (token specification).
            query = [("service", fields["service"])]
            query += [("scope", each) for each in fields["scope"].split(" ")]
            url = httpx.URL(realm)
            merged = [*url.params.multi_items(), *query]
            request = httpx.Request("GET", url.copy_with(params=merged), headers=headers)
        status, body = await fetch(request)
        if status in (400, 401, 403):
            raise Unauthenticated(
                f"{parts.netloc} refused the credentials ({status})"
                if pair or identity
                else f"{parts.netloc} gives no token without credentials ({status})"
                + self._withheld(trusted),
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
