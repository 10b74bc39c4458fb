"""Registry hosts: containerd's ``hosts.toml``, from a folder that the configuration names.

``<config_path>/<host>_<port>_/hosts.toml``, ``<config_path>/<host>[:<port>]/hosts.toml`` and
``<config_path>/_default/hosts.toml`` are tried in this order
(containerd, docs/hosts.md). Each ``[host."URL"]`` is tried in the order of the file, ``server``
last. Files are read at each pull, so that a change needs no restart.

The first of these folders that exists decides. Where it has no hosts.toml it is read as docker's
``certs.d``: ``*.crt`` are authorities, ``NAME.cert`` with ``NAME.key`` is a client's certificate
(docker, "Verify repository client with certificates"; containerd reads such folders too).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import ssl
import tomllib
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from hostlib.errors import InvalidArgument

Capability = Literal["pull", "resolve", "push"]

DEFAULT_FOLDER: Final = "_default"
"""Whose file is for the registries that have none of their own."""

_MAX_FILE: Final = 1024 * 1024
_FIELDS: Final = frozenset(
    ("capabilities", "ca", "client", "skip_verify", "override_path", "header", "dial_timeout")
)
_ALL: Final[frozenset[str]] = frozenset(("pull", "resolve", "push"))
_DURATION_PART: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ns|us|ms|s|m|h)")
_DURATION: Final = re.compile(f"(?:{_DURATION_PART.pattern})+")
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_DIAL: Final = 3600

_MAX_CONTEXTS: Final = 16
_contexts: dict[Hashable, ssl.SSLContext] = {}


def _system_authorities() -> list[Path]:
    found = ssl.get_default_verify_paths()
    return [Path(path) for path in (found.cafile, found.capath) if path is not None]


def _state(path: Path) -> tuple[str, int, int, int]:
    """What changes when the file, or what is in the folder, does."""
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0, 0
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns


class BadHosts(InvalidArgument):
    """A hosts.toml that is malformed; the message names file and key."""


@dataclass(frozen=True)
class Host:
    """Where to ask for one registry's content."""

    base: str
    """The URL before ``/<name>/manifests/...``, as a rule ending in ``/v2``."""
    namespace: str
    """The registry whose content is asked for; mirrors get it as the query ``ns``."""
    capabilities: frozenset[str] = _ALL
    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool = False
    header: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Often a secret."""
    is_mirror: bool = False
    dial_timeout: float | None = None
    """Seconds that a connection may take to be made."""

    @property
    def netloc(self) -> str:
        """Host and port."""
        return urlsplit(self.base).netloc

    def tls(self) -> ssl.SSLContext:
        """What httpx takes as ``verify``, also for a plain host: it may redirect to another.

        The same object until one of the files that it is made from changes: reading the system's
        authorities takes longer than all else that a pull of an image that is here does. Blocking;
        raises `BadHosts` for files that cannot be used.
        """
        own = [*self.ca, *(file for pair in self.client for file in pair if file is not None)]
        key = (self.skip_verify, self.ca, self.client, *map(_state, [*own, *_system_authorities()]))
        if (context := _contexts.get(key)) is None:
            context = self._make_tls()
            if len(_contexts) >= _MAX_CONTEXTS:
                _contexts.clear()
            _contexts[key] = context
        return context

    def _make_tls(self) -> ssl.SSLContext:
        # The system's authorities, as containerd uses them, not those that come with httpx.
        context = ssl.create_default_context()
        try:
            for authority in self.ca:
                context.load_verify_locations(authority)
            for certificate, key in self.client:
                context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise BadHosts(
                f"TLS files of registry host {self.base} cannot be used: {error}",
                hint="check ca and client in its hosts.toml, or the .crt, .cert, .key files",
            ) from error
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def is_local(netloc: str) -> bool:
    """Whether the host is this machine: plain http is the default then, as in containerd."""
    name = urlsplit(f"//{netloc}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _default(domain: str) -> Host:
    netloc = "registry-1.docker.io" if domain == "docker.io" else domain
    scheme = "http" if is_local(netloc) and not netloc.endswith(":443") else "https"
    return Host(f"{scheme}://{netloc}/v2", domain)


class _Table:
    """One table of the file, read with types; each complaint names file and key."""

    def __init__(self, path: Path, where: str, table: dict[str, Any]) -> None:
        self._path, self._where, self._table = path, where, table

    def bad(self, key: str, why: str) -> BadHosts:
        place = f"{self._where}.{key}" if self._where else key
        return BadHosts(f"{self._path}: {place}: {why}", hint="see containerd's docs/hosts.md")

    def refuse_unknown(self, known: frozenset[str]) -> None:
        for key in self._table:
            if key not in known:
                raise self.bad(key, f"unknown key (known: {', '.join(sorted(known))})")

    def flag(self, key: str) -> bool:
        value = self._table.get(key, False)
        if not isinstance(value, bool):
            raise self.bad(key, "must be true or false")
        return value

    def capabilities(self) -> frozenset[str]:
        value = self._table.get("capabilities")
        if value is None:
            return _ALL
        if not isinstance(value, list) or not all(
            isinstance(item, str) and item in _ALL for item in value
        ):
            raise self.bad("capabilities", "must be a list of pull, resolve, push")
        return frozenset(value)

    def _file(self, key: str, value: object) -> Path:
        if not isinstance(value, str) or not value:
            raise self.bad(key, "must be a path")
        return self._path.parent / value

    def authorities(self) -> tuple[Path, ...]:
        value = self._table.get("ca", [])
        return tuple(
            self._file("ca", item) for item in (value if isinstance(value, list) else [value])
        )

    def clients(self) -> tuple[tuple[Path, Path | None], ...]:
        value = self._table.get("client", [])
        pairs: list[tuple[Path, Path | None]] = []
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, list):
                if len(item) != 2:
                    raise self.bad("client", "a pair is [certificate, key]")
                key = self._file("client", item[1]) if item[1] != "" else None
                pairs.append((self._file("client", item[0]), key))
            else:
                pairs.append((self._file("client", item), None))
        return tuple(pairs)

    def header(self) -> tuple[tuple[str, str], ...]:
        value = self._table.get("header", {})
        if not isinstance(value, dict):
            raise self.bad("header", "must be a table")
        pairs: list[tuple[str, str]] = []
        for name, content in value.items():
            for item in content if isinstance(content, list) else [content]:
                if not isinstance(item, str) or any(c in item + name for c in "\r\n\0"):
                    raise self.bad(f"header.{name}", "must be a string or a list of strings")
                pairs.append((name, item))
        return tuple(pairs)

    def duration(self, key: str) -> float | None:
        """Seconds, written as Go does: "1m30s", "500ms"."""
        value = self._table.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not _DURATION.fullmatch(value):
            raise self.bad(key, 'must be a time such as "10s"')
        seconds = sum(float(n) * _UNITS[unit] for n, unit in _DURATION_PART.findall(value))
        if not 0 < seconds <= _MAX_DIAL:
            raise self.bad(key, f"must be above 0, and {_MAX_DIAL} s at most")
        return seconds

    def host(self, url: object, namespace: str, *, is_mirror: bool) -> Host:
        if not isinstance(url, str) or not url:
            raise self.bad("server", "must be a URL")
        full = url if "://" in url else f"https://{url}"
        try:
            parts = urlsplit(full)
            _ = parts.port
        except ValueError as error:
            raise self.bad("server", f"bad URL {url!r}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise self.bad("server", f"{url!r} is no http or https URL")
        if parts.username or parts.query or parts.fragment:
            raise self.bad("server", f"{url!r} must hold scheme, host, port and path alone")
        path = parts.path.rstrip("/")
        if not self.flag("override_path") and not path.endswith("/v2"):
            path += "/v2"
        return Host(
            f"{parts.scheme}://{parts.netloc}{path}",
            namespace,
            self.capabilities(),
            self.authorities(),
            self.clients(),
            self.flag("skip_verify"),
            self.header(),
            is_mirror,
            self.duration("dial_timeout"),
        )


def parse(text: str, path: Path, domain: str) -> tuple[Host, ...]:
    """The hosts of `domain` by the hosts.toml `text` read from `path`. Raises `BadHosts`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadHosts(f"{path}: {error}", hint="it must be TOML") from error
    top = _Table(path, "", data)
    top.refuse_unknown(_FIELDS | {"server", "host"})
    tables = data.get("host", {})
    if not isinstance(tables, dict):
        raise top.bad("host", 'must be tables [host."URL"]')
    hosts: list[Host] = []
    for url, body in tables.items():
        if not isinstance(body, dict):
            raise top.bad(f"host.{url}", "must be a table")
        table = _Table(path, f'host."{url}"', body)
        table.refuse_unknown(_FIELDS)
        hosts.append(table.host(url, domain, is_mirror=True))
    default = _default(domain)
    if "server" in data:
        last = top.host(data["server"], domain, is_mirror=False)
    else:
        if path.parent.name == DEFAULT_FOLDER and top.flag("skip_verify"):
            raise top.bad("skip_verify", "would hold for every registry: name the host it is for")
        last = top.host(default.base, domain, is_mirror=False)
        if not data.get("override_path"):
            last = replace(last, base=default.base)
    return (*hosts, last)


def find(config_path: Path | None, domain: str) -> tuple[Host, ...]:
    """The hosts to ask for the content of `domain`, in order. Blocking; raises `BadHosts`."""
    if config_path is not None:
        name, colon, port = domain.rpartition(":")
        escaped = [f"{name}_{port}_"] if colon and port.isdigit() else []
        for folder in (*escaped, domain, DEFAULT_FOLDER):
            if (found := _in_folder(config_path / folder, domain)) is not None:
                return found
    return (_default(domain),)


def _in_folder(folder: Path, domain: str) -> tuple[Host, ...] | None:
    """What a registry's folder says; None where there is no such folder."""
    path = folder / "hosts.toml"
    data = b""
    try:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as source:
            data = source.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise BadHosts(f"{path} is larger than {_MAX_FILE} bytes")
        return parse(data.decode(), path, domain) if data else _by_certificates(folder, domain)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BadHosts(f"{path} cannot be read: {error}") from error


def _by_certificates(folder: Path, domain: str) -> tuple[Host, ...]:
    """The registry itself, with the certificates that lie in the folder by docker's names.

    Raises OSError, and `BadHosts` for a key whose certificate is missing: it would be for nothing.
    """
    names = sorted(entry.name for entry in os.scandir(folder))
    authorities = tuple(folder / name for name in names if name.endswith(".crt"))
    pairs: list[tuple[Path, Path | None]] = []
    for name in names:
        if name.endswith(".cert"):
            key = f"{name.removesuffix('.cert')}.key"
            pairs.append((folder / name, folder / key if key in names else None))
        elif name.endswith(".key") and f"{name.removesuffix('.key')}.cert" not in names:
            raise BadHosts(
                f"{folder / name} has no certificate beside it",
                hint=f"name the certificate {name.removesuffix('.key')}.cert",
            )
    host = _default(domain)
    if authorities or pairs:
        # Who gives certificates for a registry on this machine means TLS there, too.
        base = f"https://{host.netloc}/v2"
        host = replace(host, base=base, ca=authorities, client=tuple(pairs))
    return (host,)
