"""Host ports: which of them collide, which are in use, and what each comes to in the rules.

What a pod's ports cost depends on how many it has, not on how many the node has.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from cri.network.api import HostPort
from cri.network.nft import Published
from hostlib.errors import FailedPrecondition

_MAX_PORT: Final = 65535
_EVERY: Final = ("", "0.0.0.0", "::")  # noqa: S104 (nothing is bound)


class Taken:
    """The ports that are published, or about to be: by pod, and by protocol and number."""

    def __init__(self) -> None:
        self._of_pod: dict[str, list[Published]] = {}
        self._owners: dict[tuple[str, int], dict[str, list[Published]]] = {}

    def __iter__(self) -> Iterator[Published]:
        for held in self._of_pod.values():
            yield from held

    def of_pod(self, pod: str) -> list[Published]:
        """What `pod` holds."""
        return list(self._of_pod.get(pod, ()))

    def claims(self, port: HostPort) -> Iterator[tuple[str, Published]]:
        """What is held of this protocol and number, at whatever address, each with its pod."""
        for pod, held in self._owners.get(_number(port), {}).items():
            for entry in held:
                yield pod, entry

    def add(self, pod: str, published: Iterable[Published]) -> None:
        """Note what `pod` holds besides what it holds already."""
        for entry in published:
            self._of_pod.setdefault(pod, []).append(entry)
            self._owners.setdefault(_number(entry.port), {}).setdefault(pod, []).append(entry)

    def discard(self, pod: str) -> None:
        """`pod` holds nothing any more. Idempotent."""
        for entry in self._of_pod.pop(pod, ()):
            owners = self._owners.get(_number(entry.port), {})
            owners.pop(pod, None)
            if not owners:
                self._owners.pop(_number(entry.port), None)


def _number(port: HostPort) -> tuple[str, int]:
    return port.protocol, port.host_port


def check(ports: Sequence[HostPort], pod: str, taken: Taken, *, ipv6: bool) -> None:
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
        for owner, other in taken.claims(port):
            if owner != pod and _meet(port.host_ip, other.place):
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
