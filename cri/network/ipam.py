"""Address allocation for the built-in network: one record for each lease, under state.

Addresses are handed out in turn, so that one is not used again at once: a peer may still hold a
connection, a neighbour entry or a cached name for its former owner. The records are the truth; what
is in memory is read from them once.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostlib import records
from hostlib.errors import DataLoss, InvalidArgument, ResourceExhausted

log = logging.getLogger(__name__)

_LEASE: Final = "lease"
_CURSOR: Final = "lease-cursor"
_VERSION: Final = 1
_SUFFIX: Final = ".json"

Address = ipaddress.IPv4Address


@dataclass(frozen=True)
class Lease:
    """Who holds an address: a pod, by sandbox id, in a VM."""

    address: Address
    pod: str
    vm: str


def parse_subnet(text: str) -> ipaddress.IPv4Network:
    """The subnet of the configuration. Raises `InvalidArgument`."""
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise InvalidArgument(
            f"network.subnet {text!r} is no IPv4 network: {error}", hint="write it as 10.88.0.0/16"
        ) from error
    if not 8 <= network.prefixlen <= 29:
        raise InvalidArgument(
            f"network.subnet {text} must have a prefix between /8 and /29",
            hint="a /16 has room for 65533 pods",
        )
    return network


def parse_subnet6(text: str, subnet: ipaddress.IPv4Network) -> ipaddress.IPv6Network:
    """The IPv6 subnet of the configuration, which must hold as many addresses as `subnet`. Raises
    `InvalidArgument`."""
    try:
        network = ipaddress.IPv6Network(text)
    except ValueError as error:
        raise InvalidArgument(
            f"network.subnet6 {text!r} is no IPv6 network: {error}", hint="write it as fd00:88::/64"
        ) from error
    if network.num_addresses < subnet.num_addresses:
        raise InvalidArgument(
            f"network.subnet6 {text} has room for fewer pods than network.subnet {subnet}",
            hint="a /64 has room for all",
        )
    return network


def paired(
    address: Address, subnet: ipaddress.IPv4Network, subnet6: ipaddress.IPv6Network
) -> ipaddress.IPv6Address:
    """The IPv6 address that goes with an IPv4 one: of the same number in its subnet, so that one
    lease is for both."""
    return subnet6[int(address) - int(subnet.network_address)]


class Leases:
    """The leases of one subnet, kept in `folder`. The first address is the gateway's."""

    def __init__(self, folder: Path, subnet: ipaddress.IPv4Network) -> None:
        self.subnet = subnet
        self.gateway = Address(int(subnet.network_address) + 1)
        self._folder = folder
        self._first = int(subnet.network_address) + 2
        self._last = int(subnet.broadcast_address) - 1
        self._next = self._first
        self._held: dict[Address, Lease] = {}
        self._of_pod: dict[str, set[Address]] = {}

    def load(self) -> None:
        """Read the records. The address of a damaged one stays out of use until reconciliation
        finds that no pod claims it; the daemon starts all the same."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        records.sweep(self._folder)
        self._held.clear()
        self._of_pod.clear()
        for name in os.listdir(self._folder):
            if not name.endswith(_SUFFIX) or name.startswith("."):
                continue
            path = self._folder / name
            try:
                address = Address(name.removesuffix(_SUFFIX))
            except ValueError:
                continue
            try:
                body = records.read(path, _LEASE, _VERSION)
                lease = Lease(address, str(body["pod"]), str(body["vm"]))
            except (DataLoss, KeyError) as error:
                log.warning("lease %s is damaged, kept until no pod claims it: %s", path, error)
                lease = Lease(address, "", "")
            self._hold(lease)
        try:
            cursor = records.read(self._folder / "cursor", _CURSOR, _VERSION)
            self._next = self._clamp(int(cursor.get("next", self._first)))
        except (FileNotFoundError, DataLoss, ValueError):
            self._next = self._first

    def _clamp(self, value: int) -> int:
        return value if self._first <= value <= self._last else self._first

    def __len__(self) -> int:
        return len(self._held)

    def all(self) -> list[Lease]:
        """Every lease, in the order of addresses."""
        return [self._held[address] for address in sorted(self._held)]

    def of_pod(self, pod: str) -> list[Lease]:
        """What `pod` holds."""
        return [self._held[address] for address in self._of_pod.get(pod, ())]

    def allocate(self, pod: str, vm: str) -> Address:
        """The next free address. Raises `ResourceExhausted`."""
        size = self._last - self._first + 1
        value = self._next
        for _ in range(size):
            address = Address(value)
            value = self._clamp(value + 1)
            if address not in self._held:
                self._next = value
                self._write(Lease(address, pod, vm))
                records.write(
                    self._folder / "cursor", _CURSOR, _VERSION, {"next": value}, durable=False
                )
                return address
        raise ResourceExhausted(
            f"all {size} addresses of {self.subnet} are in use",
            hint="remove pods, or set a larger network.subnet",
        )

    def claim(self, address: Address, pod: str, vm: str) -> None:
        """Note a lease whose holder is known to live, whatever the records said."""
        lease = Lease(address, pod, vm)
        if self._held.get(address) != lease:
            self._write(lease)

    def _write(self, lease: Lease) -> None:
        path = self._folder / f"{lease.address}{_SUFFIX}"
        body = {"pod": lease.pod, "vm": lease.vm}
        records.write(path, _LEASE, _VERSION, body, durable=False)
        self._hold(lease)

    def _hold(self, lease: Lease) -> None:
        self._drop(lease.address)
        self._held[lease.address] = lease
        self._of_pod.setdefault(lease.pod, set()).add(lease.address)

    def _drop(self, address: Address) -> None:
        if (lease := self._held.pop(address, None)) is None:
            return
        mine = self._of_pod[lease.pod]
        mine.discard(address)
        if not mine:
            del self._of_pod[lease.pod]

    def release(self, address: Address) -> None:
        """Free an address. Idempotent."""
        (self._folder / f"{address}{_SUFFIX}").unlink(missing_ok=True)
        self._drop(address)

    def holder(self, address: Address) -> Lease | None:
        """The lease of an address."""
        return self._held.get(address)

    def exist(self) -> bool:
        """Whether there are records at all, `load`ed or not."""
        return any(self._folder.glob(f"[0-9]*{_SUFFIX}"))
