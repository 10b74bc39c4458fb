"""Host ports: which of them collide, which are in use, and what each comes to in the rules."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from cri.network.api import HostPort
from cri.network.nft import Published
from hostlib.errors import FailedPrecondition

Taken = dict[str, tuple[str, Published]]
"""Published ports by their key, each with the id of its pod."""

_MAX_PORT: Final = 65535
_EVERY: Final = ("", "0.0.0.0", "::")  # noqa: S104 (nothing is bound)


def check(
    ports: Sequence[HostPort], pod: str, taken: Mapping[str, tuple[str, Published]], *, ipv6: bool
) -> None:
    """Refuse (`FailedPrecondition`) a port that another pod, or a process of the host, holds, and
    one at an IPv6 address where pods have none, or that cannot be forwarded."""
    for port in ports:
        what = f"host port {port.host_port}/{port.protocol}"
        if ":" in port.host_ip and not ipv6:
            raise FailedPrecondition(
                f"{what} at {port.host_ip}: pods have no IPv6 address",
                hint="set network.subnet6, or leave host_ip out",
            )
        if port.host_ip == "::1":
            raise FailedPrecondition(
                f"{what} at ::1: the kernel forwards nothing from IPv6's loopback",
                hint="use 127.0.0.1",
            )
        for owner, other in taken.values():
            same = (other.port.protocol, other.port.host_port) == (port.protocol, port.host_port)
            if same and owner != pod and _meet(port.host_ip, other.place):
                raise FailedPrecondition(
                    f"{what} is taken by pod {owner}", hint="remove that pod first"
                )
        if is_bound(port):
            raise FailedPrecondition(
                f"{what} is in use by a process on this host",
                hint=f"find it with: ss -lnp 'sport = {port.host_port}'",
            )


def _meet(one: str, other: str) -> bool:
    """Whether two mappings of a port, at these addresses of the host, claim the same."""
    if not one or not other:
        return True
    if (":" in one) != (":" in other):
        return False
    return one == other or one in _EVERY or other in _EVERY


def entries(ports: Sequence[HostPort], ips: Sequence[str]) -> list[Published]:
    """What is to be published: each port by each of the pod's addresses whose family it means."""
    return [
        Published(replace(port, host_ip="") if port.host_ip in _EVERY else port, ip)
        for port in ports
        for ip in ips
        if not port.host_ip or (":" in port.host_ip) == (":" in ip)
    ]


def is_bound(port: HostPort) -> bool:
    """Whether a process of the host listens on the port; a check, since forwarding needs no
    listener. SCTP is not checked: Python cannot open it everywhere."""
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    if port.protocol not in kinds or not 0 < port.host_port <= _MAX_PORT:
        return False
    family = socket.AF_INET6 if ":" in port.host_ip else socket.AF_INET
    with socket.socket(family, kinds[port.protocol]) as probe:
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if port.protocol == "tcp":
            # Connections that only linger in TIME_WAIT do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host_ip, port.host_port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
