"""Who a pod is, inside: hostname, hosts, resolv.conf, machine-id, boot_id. All of it made anew."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cri.api import v1_pb2 as v1
from hostlib.errors import InvalidArgument

# sethostname(2): HOST_NAME_MAX.
MAX_HOSTNAME: Final = 64
HOST_RESOLV_CONF: Final = (
    Path("/etc/resolv.conf"),
    # Where systemd-resolved keeps the servers behind its own stub at 127.0.0.53.
    Path("/run/systemd/resolve/resolv.conf"),
)
MAX_TEXT: Final = 64 * 1024


def hostname(config: v1.PodSandboxConfig) -> str:
    """The pod's hostname; its name where it asks for none. Raises `InvalidArgument`."""
    name = config.hostname or config.metadata.name[:63]
    if len(name) > MAX_HOSTNAME or any(c.isspace() or c in "/\0" for c in name):
        raise InvalidArgument(f"malformed hostname {name!r}", hint="at most 64 characters")
    return name


def hosts(name: str, ips: Sequence[str]) -> str:
    """The text of /etc/hosts."""
    lines = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::0\tip6-localnet",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
        *(f"{ip}\t{name}" for ip in ips),
    ]
    return "\n".join(lines) + "\n"


def resolv_conf(dns: v1.DNSConfig, servers: Sequence[str]) -> str:
    """The text of /etc/resolv.conf: what the pod asks for, else `servers`, else the host's.

    Blocking: it may read the host's file.
    """
    if dns.servers or dns.searches or dns.options:
        return resolv_text(dns.servers, dns.searches, dns.options)
    if servers:
        return resolv_text(servers, (), ())
    for path in HOST_RESOLV_CONF:
        try:
            text = path.read_text(errors="replace")[:MAX_TEXT]
        except OSError:
            continue
        kept = [line for line in text.splitlines() if not _is_loopback(line)]
        if any(line.split()[:1] == ["nameserver"] for line in kept):
            return "\n".join(kept) + "\n"
    return ""


def resolv_text(servers: Sequence[str], searches: Sequence[str], options: Sequence[str]) -> str:
    lines = [f"search {' '.join(searches)}"] if searches else []
    lines += [f"nameserver {server}" for server in servers]
    lines += [f"options {' '.join(options)}"] if options else []
    return "\n".join(lines) + "\n"


def _is_loopback(line: str) -> bool:
    words = line.split()
    return words[:1] == ["nameserver"] and len(words) > 1 and words[1].startswith(("127.", "::1"))


def identity(name: str, ips: Sequence[str], resolv: str) -> dict[str, Any]:
    """The ``identity`` object of the agent's ``restore``."""
    return {
        "hostname": name,
        "hosts": hosts(name, ips),
        "resolv_conf": resolv,
        "machine_id": uuid.uuid4().hex,
        "boot_id": str(uuid.uuid4()),
    }
