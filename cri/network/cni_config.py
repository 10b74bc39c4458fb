"""CNI network configurations: which file counts, and what a plugin is told from it.

The rules are libcni's: files ``*.conf``, ``*.conflist`` and ``*.json`` in the order of their names,
the first valid one wins (https://www.cni.dev/docs/spec/, section 1).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cri.network.api import Dns, HostPort, Wire

log = logging.getLogger(__name__)

_SUFFIXES: Final = (".conf", ".conflist", ".json")
_MAX_BYTES: Final = 1024 * 1024
VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The versions whose results have the form that is read here."""


@dataclass(frozen=True)
class NetworkList:
    """One network: plugins run in order on ADD, in reverse on DEL."""

    name: str
    version: str
    plugins: tuple[Wire, ...]
    source: Path


def stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes whenever a configuration in `folder` does."""
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    stamps = []
    for path in found:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        stamps.append((path.name, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def load(folder: Path) -> tuple[NetworkList | None, str]:
    """The first valid configuration; else None, and why there is none."""
    problems = []
    for name, _, _ in stamp(folder):
        try:
            return parse(folder / name), ""
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {error}")
            log.warning("CNI configuration %s is left out: %s", folder / name, error)
    return None, "; ".join(problems) or f"no CNI configuration in {folder}"


def parse(path: Path) -> NetworkList:
    """One file, a list or a single plugin. Raises ValueError."""
    with open(path, "rb") as source:
        data = source.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES} bytes")
    body = json.loads(data)
    if not isinstance(body, dict):
        raise ValueError("not a JSON object")
    name = body.get("name")
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError("the network has no valid name")
    version = body.get("cniVersion", "")
    if version not in VERSIONS:
        raise ValueError(f"cniVersion {version!r} is not one of {', '.join(VERSIONS)}")
    plugins = body.get("plugins") if path.suffix == ".conflist" or "plugins" in body else [body]
    if not isinstance(plugins, list) or not plugins:
        raise ValueError("the network has no plugins")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        # The type is a file name in the folder of plugins, never a path.
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise ValueError("a plugin has no valid type")
    return NetworkList(name, version, tuple(plugins), path)


def capabilities(
    ports: Sequence[HostPort], dns: Dns | None, annotations: Mapping[str, str]
) -> Wire:
    """All that a plugin may ask for by a capability of that name."""
    offered: Wire = {}
    if ports:
        offered["portMappings"] = [
            {
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol,
                **({"hostIP": port.host_ip} if port.host_ip else {}),
            }
            for port in ports
        ]
    if dns is not None and (dns.servers or dns.searches or dns.options):
        offered["dns"] = {
            "servers": list(dns.servers),
            "searches": list(dns.searches),
            "options": list(dns.options),
        }
    bandwidth: Wire = {}
    for direction in ("ingress", "egress"):
        if text := annotations.get(f"kubernetes.io/{direction}-bandwidth"):
            bandwidth[f"{direction}Rate"] = bits(text)
            # The plugin wants a burst; the largest that it takes means no further limit.
            bandwidth[f"{direction}Burst"] = 2**31 - 1
    if bandwidth:
        offered["bandwidth"] = bandwidth
    return offered


def bits(text: str) -> int:
    """A Kubernetes quantity as a whole number, such as ``10M``. Raises ValueError."""
    units = {"k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    for unit in sorted(units, key=len, reverse=True):
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * units[unit])
    return int(text)


def request(
    network: NetworkList, plugin: Wire, offered: Wire, state: Path, previous: Wire | None
) -> Wire:
    """What the plugin reads from its standard input.

    host-local keeps its leases under `state`, unless the configuration says where.
    """
    body: dict[str, Any] = {k: v for k, v in plugin.items() if k not in ("capabilities", "plugins")}
    body["name"] = network.name
    body["cniVersion"] = network.version
    asked = plugin.get("capabilities")
    wanted = {k: v for k, v in offered.items() if isinstance(asked, dict) and asked.get(k)}
    if wanted:
        body["runtimeConfig"] = wanted
    ipam = body.get("ipam")
    if isinstance(ipam, dict) and ipam.get("type") == "host-local" and "dataDir" not in ipam:
        body["ipam"] = {**ipam, "dataDir": str(state / "host-local")}
    if previous is not None:
        body["prevResult"] = previous
    return body
