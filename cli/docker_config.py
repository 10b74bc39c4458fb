"""Credentials for registries, where `docker login` and its like put them.

``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``: ``credHelpers``, ``credsStore`` and
``auths``, in this order, as Docker's client reads them. A helper is the program
``docker-credential-NAME`` (github.com/docker/docker-credential-helpers). ``REGISTRY_AUTH_FILE``
names another file of this form, whose keys may be repositories (containers-auth.json(5)).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final

from hostlib.errors import FailedPrecondition, InvalidArgument, ThawError
from images import reference
from images.reference import Reference
from images.servers import server_of

_MAX_FILE: Final = 4 * 1024 * 1024
_MAX_ANSWER: Final = 256 * 1024
_HELPER_SECONDS: Final = 120.0
"""A helper may ask its user something."""

_DOCKER_HUB: Final = "https://index.docker.io/v1/"
"""The name of docker.io in these files."""

_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOT_FOUND: Final = "credentials not found"
_TOKEN_USER: Final = "<token>"  # noqa: S105 - the user name that stands before an identity token


def path() -> Path:
    """The file that is read."""
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        return Path(named)
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def find(image: str) -> dict[str, str]:
    """The fields of CRI's AuthConfig for the image's registry; empty where there are none.

    Raises `InvalidArgument` for a file that is malformed, `FailedPrecondition` for a helper that
    is missing or fails. No message holds a secret.
    """
    try:
        ref = reference.parse(image)
    except ThawError:
        # The daemon says it better.
        return {}
    file = path()
    body = _load(file)
    found = _from_helper(body, ref, file) or _from_auths(body, ref, file)
    return {**found, "server_address": ref.domain} if found else {}


def _load(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as source:
            data = source.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise FailedPrecondition(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise InvalidArgument(f"{file} is larger than {_MAX_FILE} bytes")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        # Without its cause: that could quote the file.
        raise InvalidArgument(f"{file} is no JSON object", hint="mend it, or log in again")
    return body


def _table(body: dict[str, Any], key: str, file: Path) -> dict[str, Any]:
    found = body.get(key) or {}
    if not isinstance(found, dict):
        raise InvalidArgument(f"{file}: {key} is no object")
    return found


def _repository(key: str) -> tuple[str, str] | None:
    """The server that a key means, and the beginning of the repositories that it is for."""
    plain = key.partition("://")[2] or key
    host, _, rest = plain.partition("/")
    try:
        server = server_of(host)
    except ThawError:
        return None
    rest = rest.strip("/")
    # What the registry's own API begins with is no repository.
    rest = "" if rest in ("v1", "v2") else rest
    return ("docker.io" if server in ("index.docker.io", "registry-1.docker.io") else server), rest


def _best(table: dict[str, Any], ref: Reference) -> str | None:
    """The key that fits `ref` best: the longest path."""
    fitting: list[tuple[int, str]] = []
    for key in table:
        found = _repository(key)
        if found is None or found[0] != server_of(ref.domain):
            continue
        if not found[1] or f"{ref.path}/".startswith(f"{found[1]}/"):
            fitting.append((len(found[1]), key))
    return max(fitting)[1] if fitting else None


def _from_auths(body: dict[str, Any], ref: Reference, file: Path) -> dict[str, str]:
    table = _table(body, "auths", file)
    key = _best(table, ref)
    entry = table[key] if key is not None else {}
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{file}: auths.{key} is no object")
    fields = {
        "username": "username",
        "password": "password",
        "auth": "auth",
        "identity_token": "identitytoken",
        "registry_token": "registrytoken",
    }
    found = {ours: entry.get(theirs) or "" for ours, theirs in fields.items()}
    if not all(isinstance(value, str) for value in found.values()):
        raise InvalidArgument(f"{file}: auths.{key} holds what is no text")
    return {name: value for name, value in found.items() if value}


def _from_helper(body: dict[str, Any], ref: Reference, file: Path) -> dict[str, str]:
    helpers = _table(body, "credHelpers", file)
    key = _best(helpers, ref)
    name = helpers[key] if key is not None else body.get("credsStore")
    if not name:
        return {}
    if not isinstance(name, str) or not _HELPER.fullmatch(name):
        raise InvalidArgument(f"{file}: a credential helper has a bad name")
    server = key or (_DOCKER_HUB if ref.domain == "docker.io" else ref.domain)
    return _ask(f"docker-credential-{name}", server, file)


def _ask(program: str, server: str, file: Path) -> dict[str, str]:
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_SECONDS
        )
    except OSError as error:
        raise FailedPrecondition(
            f"credential helper {program} cannot be run: {error.strerror}",
            hint=f"install it, or take it out of {file}",
        ) from error
    except subprocess.TimeoutExpired:
        # Without its cause: that holds what the helper said.
        raise FailedPrecondition(
            f"credential helper {program} did not answer in {_HELPER_SECONDS:g} s"
        ) from None
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip()
        if _NOT_FOUND in said.lower():
            return {}
        raise FailedPrecondition(
            f"credential helper {program} failed with {done.returncode} for {server}",
            hint=f"try: echo {server} | {program} get",
        )
    try:
        answer = json.loads(done.stdout[:_MAX_ANSWER])
        user, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        user = secret = None
    if not isinstance(user, str) or not isinstance(secret, str):
        raise FailedPrecondition(f"credential helper {program} answered no credentials")
    if user == _TOKEN_USER:
        return {"identity_token": secret}
    return {"username": user, "password": secret}
