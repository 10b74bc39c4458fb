"""The nftables table of one instance: masquerade, host ports, and what keeps loopback closed.

One table, ``inet thaw-<instance>``, holds everything, so that removing it removes every trace.
Host ports are elements of two maps; a pod without host ports needs no change here. Each change is
one transaction of ``nft -f -``: all of it happens or none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cri.network.api import HostPort
from hostlib import process

_PACKAGE: Final = "nftables"
_TIMEOUT: Final = 10.0


@dataclass(frozen=True)
class Published:
    """A host port together with the pod's address behind it."""

    port: HostPort
    address: str

    @property
    def key(self) -> str:
        head = f"{self.port.host_ip} . " if self.port.host_ip else ""
        return f"{head}{self.port.protocol} . {self.port.host_port}"

    @property
    def map(self) -> str:
        return "ports_of_address" if self.port.host_ip else "ports"

    @property
    def element(self) -> str:
        return f"{self.key} : {self.address} . {self.port.container_port}"


def table(instance: str) -> str:
    """The table's family and name."""
    return f"inet thaw-{instance}"


def ruleset(instance: str, bridge: str, subnet: str, *, masquerade: bool) -> str:
    """Make or renew the table; the elements of its maps stay.

    - With `masquerade` a pod's traffic to the outside leaves with the host's address.
    - What goes through a host port to the bridge (from the host's own loopback, or from a pod)
      leaves with the bridge's address, else the answer would go another way.
    - Host ports on 127.0.0.1 need route_localnet on the bridge, and that would open the host's
      loopback to pods: so packets for 127.0.0.0/8 that come from the bridge are dropped first.
    """
    name = table(instance)
    outside = f"{{ {subnet}, 224.0.0.0/4 }}"
    chains = {
        "guard": (
            "type filter hook prerouting priority raw; policy accept;",
            [f'iifname "{bridge}" ip daddr 127.0.0.0/8 drop'],
        ),
        "prerouting": (
            "type nat hook prerouting priority dstnat; policy accept;",
            ["fib daddr type local jump publish"],
        ),
        "output": (
            "type nat hook output priority -100; policy accept;",
            ["fib daddr type local jump publish"],
        ),
        "postrouting": (
            "type nat hook postrouting priority srcnat; policy accept;",
            [
                f'oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade',
                f'oifname "{bridge}" ct status dnat ip saddr {subnet} masquerade',
                f'oifname != "{bridge}" ip saddr {subnet} ip daddr != {outside} masquerade',
            ],
        ),
    }
    source = "inet_proto . inet_service"
    key = "meta l4proto . th dport"
    target = "ipv4_addr . inet_service"
    if not masquerade:
        chains["postrouting"][1].pop()
    lines = [
        f"add table {name}",
        f"add map {name} ports {{ type {source} : {target}; }}",
        f"add map {name} ports_of_address {{ type ipv4_addr . {source} : {target}; }}",
        f"add chain {name} publish",
        f"flush chain {name} publish",
        f"add rule {name} publish dnat ip to ip daddr . {key} map @ports_of_address",
        f"add rule {name} publish dnat ip to {key} map @ports",
    ]
    for chain, (hook, rules) in chains.items():
        lines += [f"add chain {name} {chain} {{ {hook} }}", f"flush chain {name} {chain}"]
        lines += [f"add rule {name} {chain} {rule}" for rule in rules]
    return "\n".join(lines) + "\n"


def publish(instance: str, ports: Iterable[Published]) -> str:
    """Make `ports` the host ports, whatever they were before."""
    name = table(instance)
    lines = [f"flush map {name} ports", f"flush map {name} ports_of_address"]
    lines += [f"add element {name} {p.map} {{ {p.element} }}" for p in ports]
    return "\n".join(lines) + "\n"


def drop(instance: str) -> str:
    """Remove the table, whether it is there or not."""
    name = table(instance)
    return f"add table {name}\ndelete table {name}\n"


async def apply(transaction: str) -> None:
    """Carry out one transaction. Raises `FailedPrecondition` without nft, `CommandFailed` when the
    kernel refuses."""
    program = process.find("nft", package=_PACKAGE)
    await process.run(program, "-f", "-", stdin=transaction.encode(), timeout=_TIMEOUT)
