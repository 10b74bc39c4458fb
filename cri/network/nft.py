"""The nftables table of one instance: masquerade, host ports, and what keeps loopback closed.

One table, ``inet thaw-<instance>``, holds everything, so that removing it removes every trace.
Host ports are elements of two maps; a pod without host ports needs no change here, and one with
host ports a change of its own elements alone. Each change is one transaction of ``nft -f -``: all
of it happens or none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cri.network.api import HostPort
from hostlib import process

_PACKAGE: Final = "nftables"
_TIMEOUT: Final = 10.0


_MAPS: Final = ("ports", "ports_of_address")
_FAMILIES: Final = (("", "ip"), ("6", "ip6"))
"""What ends the name of a family's maps, and what nft calls the family."""


@dataclass(frozen=True)
class Published:
    """A host port together with the pod's address behind it, of either family."""

    port: HostPort
    address: str

    @property
    def match(self) -> str:
        """What it takes of the host, as the key of an element of its `map`."""
        head = f"{self.port.host_ip} . " if self.port.host_ip else ""
        return f"{head}{self.port.protocol} . {self.port.host_port}"

    @property
    def place(self) -> str:
        """The host's address that it is at; ``0.0.0.0`` or ``::`` for every one."""
        return self.port.host_ip or ("::" if ":" in self.address else "0.0.0.0")  # noqa: S104

    @property
    def map(self) -> str:
        name = "ports_of_address" if self.port.host_ip else "ports"
        return f"{name}6" if ":" in self.address else name

    @property
    def element(self) -> str:
        return f"{self.match} : {self.address} . {self.port.container_port}"


def table(instance: str) -> str:
    """The table's family and name."""
    return f"inet thaw-{instance}"


def ruleset(instance: str, bridge: str, subnet: str, subnet6: str = "", *, masquerade: bool) -> str:
    """Make or renew the table; the elements of its maps stay.

    - With `masquerade` a pod's traffic to the outside leaves with the host's address.
    - What goes through a host port to the bridge (from the host's own loopback, or from a pod)
      leaves with the bridge's address, else the answer would go another way.
    - Host ports on 127.0.0.1 need route_localnet on the bridge, and that would open the host's
      loopback to pods: so packets for 127.0.0.0/8 that come from the bridge are dropped first.
      IPv6 has no such setting: on ::1 host ports do not work, and who tries is refused at once.
    """
    name = table(instance)
    key = "meta l4proto . th dport"
    to_bridge = f'oifname "{bridge}"'
    after = [f"{to_bridge} ip saddr 127.0.0.0/8 masquerade"]
    for family, net, multicast in (("ip", subnet, "224.0.0.0/4"), ("ip6", subnet6, "ff00::/8")):
        if net:
            after.append(f"{to_bridge} ct status dnat {family} saddr {net} masquerade")
        if net and masquerade:
            outside = f"{family} daddr != {{ {net}, {multicast} }}"
            after.append(f'oifname != "{bridge}" {family} saddr {net} {outside} masquerade')
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
        "postrouting": ("type nat hook postrouting priority srcnat; policy accept;", after),
    }
    lines = [f"add table {name}", f"add chain {name} publish", f"flush chain {name} publish"]
    lines.append(f"add rule {name} publish ip6 daddr ::1 return")
    for end, family in _FAMILIES:
        address = f"ipv{end or 4}_addr"
        source, target = "inet_proto . inet_service", f"{address} . inet_service"
        publish = f"{name} publish dnat {family}"
        lines += [
            f"add map {name} ports{end} {{ type {source} : {target}; }}",
            f"add map {name} ports_of_address{end} {{ type {address} . {source} : {target}; }}",
            f"add rule {publish} to {family} daddr . {key} map @ports_of_address{end}",
            f"add rule {publish} to {key} map @ports{end}",
        ]
    for chain, (hook, rules) in chains.items():
        lines += [f"add chain {name} {chain} {{ {hook} }}", f"flush chain {name} {chain}"]
        lines += [f"add rule {name} {chain} {rule}" for rule in rules]
    return "\n".join(lines) + "\n"


def publish(instance: str, ports: Iterable[Published]) -> str:
    """Make `ports` the host ports, whatever they were before."""
    name = table(instance)
    lines = [f"flush map {name} {each}{end}" for each in _MAPS for end, _ in _FAMILIES]
    return "\n".join([*lines, *_elements("add", name, ports)]) + "\n"


def add(instance: str, ports: Iterable[Published]) -> str:
    """Add `ports` to the host ports; those that are there already stay."""
    return "\n".join(_elements("add", table(instance), ports)) + "\n"


def withdraw(instance: str, ports: Iterable[Published]) -> str:
    """Take `ports` away, whether they are there or not: what is to go is added first, since the
    kernel refuses to delete what it does not have."""
    name, gone = table(instance), list(ports)
    lines = [*_elements("add", name, gone), *_elements("delete", name, gone)]
    return "\n".join(lines) + "\n"


def _elements(verb: str, name: str, ports: Iterable[Published]) -> list[str]:
    """A statement for each, which nft reads faster than one with all; of two ports that take the
    same of the host, the last one."""
    found = {(port.map, port.match): port for port in ports}
    return [f"{verb} element {name} {p.map} {{ {p.element} }}" for p in found.values()]


def drop(instance: str) -> str:
    """Remove the table, whether it is there or not."""
    name = table(instance)
    return f"add table {name}\ndelete table {name}\n"


async def apply(transaction: str) -> None:
    """Carry out one transaction. Raises `FailedPrecondition` without nft, `CommandFailed` when the
    kernel refuses."""
    program = process.find("nft", package=_PACKAGE)
    await process.run(program, "-f", "-", stdin=transaction.encode(), timeout=_TIMEOUT)
