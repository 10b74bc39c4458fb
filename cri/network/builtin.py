"""The embedded network: one bridge, a veth pair for each VM, addresses and host ports.

Nothing is executed when a pod starts, unless it has host ports: links, addresses and neighbours go
through netlink. In a VM's namespace the veth's end and the tap are joined (`netlink.join`), and the
guest takes over the veth's MAC.

Names: bridge ``thaw<instance>``, veth ``t<instance><vm>`` (15 characters, the kernel's limit),
table ``inet thaw-<instance>``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cri.network import host_ports, netlink, nft
from cri.network.api import (
    INTERFACE,
    TAP,
    Attachment,
    Dns,
    HostPort,
    NetworkConfig,
    PodIdentity,
    Wire,
)
from cri.network.ipam import Address, Leases, paired, parse_subnet, parse_subnet6
from hostlib import failpoint
from hostlib.errors import FailedPrecondition, Internal, NotFound, ThawError

log = logging.getLogger(__name__)

KIND: Final = "builtin"
_NUD_PERMANENT: Final = 0x80
_NUD_NOARP: Final = 0x40
_NTF_MASTER: Final = 0x04
_FORWARD6: Final = "net/ipv6/conf/all/forwarding"


def bridge_name(instance: str) -> str:
    """The instance's bridge."""
    return f"thaw{instance}"


def link_name(instance: str, vm_id: str) -> str:
    """The host's end of a VM's veth pair."""
    return f"t{instance}{vm_id}"


def mac_of(*parts: str) -> str:
    """A locally administered unicast MAC, the same for the same parts."""
    digest = hashlib.sha256("/".join(parts).encode()).digest()
    return "02:" + ":".join(f"{byte:02x}" for byte in digest[:5])


class BuiltinNetwork:
    """`cri.network.api.PodNetwork` on a bridge of its own."""

    kind = KIND

    def __init__(self, config: NetworkConfig, instance: str, state: Path) -> None:
        self._instance = instance
        self._mtu = config.mtu
        self._bridge = config.bridge or bridge_name(instance)
        self._masquerade = config.masquerade
        self._bridge_mac = mac_of(instance, "bridge")
        subnet = parse_subnet(config.subnet)
        self._subnet6 = parse_subnet6(config.subnet6, subnet) if config.subnet6 else None
        self._leases = Leases(state / "network" / "leases", subnet)
        self._published = host_ports.Taken()
        self._prepared: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._nft_lock = asyncio.Lock()
        self._host: AsyncIPRoute | None = None
        self._bridge_index = 0
        self._problem: tuple[str, str] | None = ("NetworkStarting", "the network is not up yet")

    # Life of what all pods share.

    async def start(self) -> None:
        self._leases.load()
        # A start that failed is tried again, for each pod that comes.
        host = self._host = self._host or AsyncIPRoute()
        try:
            await failpoint.hit("network.start")
            await self._make_bridge(host)
            rules = nft.ruleset(
                self._instance,
                self._bridge,
                str(self._leases.subnet),
                str(self._subnet6 or ""),
                masquerade=self._masquerade,
            )
            await nft.apply(rules)
        except (ThawError, NetlinkError, OSError) as error:
            failure = (
                error
                if isinstance(error, ThawError)
                else netlink.as_error(error, f"set up bridge {self._bridge}")
            )
            self._problem = ("BridgeFailed", str(failure))
            raise failure from error
        self._problem = None

    def _gateways(self) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
        """The bridge's own addresses."""
        v4 = self._leases.subnet
        found: list[ipaddress.IPv4Interface | ipaddress.IPv6Interface] = [
            ipaddress.IPv4Interface(f"{self._leases.gateway}/{v4.prefixlen}")
        ]
        if (v6 := self._subnet6) is not None:
            found.append(ipaddress.IPv6Interface(f"{v6[1]}/{v6.prefixlen}"))
        return found

    async def _make_bridge(self, host: AsyncIPRoute) -> None:
        found = await netlink.link(host, self._bridge)
        wanted = {str(each) for each in self._gateways()}
        present = await self._check_subnets(host, found.index if found is not None else 0)
        if found is None:
            await host.link(
                "add", ifname=self._bridge, kind="bridge", address=self._bridge_mac, mtu=self._mtu
            )
            found = await netlink.link(host, self._bridge)
            if found is None:
                raise Internal(f"bridge {self._bridge} vanished while it was set up")
        for each in sorted(present - wanted):
            if len(self._leases):
                raise FailedPrecondition(
                    f"the subnets are {' and '.join(sorted(wanted))}, but pods live in {each}",
                    hint="remove all pods before changing network.subnet or network.subnet6",
                )
            local, _, length = each.partition("/")
            await host.addr("del", index=found.index, address=local, prefixlen=int(length))
        own = f"net/ipv6/conf/{self._bridge}"
        netlink.set_sysctl(f"{own}/disable_ipv6", "0" if self._subnet6 else "1")
        if self._subnet6:
            # Nobody else is on the bridge as it is made, and no router ever is.
            netlink.set_sysctl(f"{own}/accept_dad", "0")
            netlink.set_sysctl(f"{own}/accept_ra", "0")
            _forward_ipv6()
        for each in sorted(wanted - present):
            local, _, length = each.partition("/")
            await host.addr("add", index=found.index, address=local, prefixlen=int(length))
        netlink.set_sysctl(f"net/ipv4/conf/{self._bridge}/route_localnet", "1")
        netlink.set_sysctl("net/ipv4/ip_forward", "1")
        await host.link("set", index=found.index, state="up")
        self._bridge_index = found.index

    async def _check_subnets(self, host: AsyncIPRoute, bridge: int) -> set[str]:
        """The addresses that the bridge has. Raises `FailedPrecondition` when one of the subnets is
        in use elsewhere on this host."""
        present = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            async for message in await host.get_addr(family=family):
                local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
                address = ipaddress.ip_interface(f"{local}/{message['prefixlen']}")
                if address.is_link_local:
                    continue
                if message["index"] == bridge:
                    present.add(str(address))
                    continue
                for own, key in zip(self._gateways(), ("subnet", "subnet6"), strict=False):
                    if own.version == address.version and own.network.overlaps(address.network):
                        raise FailedPrecondition(
                            f"subnet {own.network} is in use on this host, by address {address}",
                            hint=f"set network.{key} to a range that nothing else uses",
                        )
        return present

    def has_leases(self) -> bool:
        """Whether pods of an earlier daemon may be on the bridge."""
        return self._leases.exist()

    async def close(self) -> None:
        try:
            if self._host is not None:
                await self.teardown_if_unused()
        finally:
            if self._host is not None:
                self._host.close()
                self._host = None
            self._problem = ("NetworkClosed", "the daemon is going down")

    async def teardown_if_unused(self) -> bool:
        """Remove bridge and table, unless a pod holds an address or a VM a link; whether it did.

        ``ip_forward`` stays as it is: who else relies on it is not known.
        """
        host = self._need_host()
        if len(self._leases) or self._own_links():
            return False
        await netlink.delete_link(host, self._bridge)
        await nft.apply(nft.drop(self._instance))
        return True

    def ready(self) -> tuple[bool, str, str]:
        return (True, "", "") if self._problem is None else (False, *self._problem)

    # A VM's link.

    def check_room(self) -> None:
        # What else is on the bridge, the kernel knows: it has the last word, in `prepare`.
        if len(self._prepared) >= netlink.BRIDGE_PORTS:
            raise netlink.bridge_full(f"connect another VM to bridge {self._bridge}")

    async def prepare(self, vm_id: str, netns: Path) -> None:
        async with self._locked(vm_id):
            await self._prepare(vm_id, netns)

    async def _prepare(self, vm_id: str, netns: Path) -> None:
        if vm_id in self._prepared:
            return
        host = self._need_host()
        name = link_name(self._instance, vm_id)
        try:
            # What a crash left half made is made anew.
            await netlink.delete_link(host, name)
            await failpoint.hit("network.prepare.link")
            await self._add_link(host, name, vm_id, netns)
            await failpoint.hit("network.prepare.join")
            async with netlink.inside(netns, ipv6=False) as inner:
                found = await netlink.links(inner)
                if TAP not in found:
                    raise Internal(f"the namespace of VM {vm_id} has no {TAP}")
                await netlink.join(inner, found[INTERFACE], found[TAP])
        except BaseException as error:
            await self._remove_link(vm_id)
            if isinstance(error, NetlinkError | OSError):
                raise netlink.as_error(
                    error, f"connect VM {vm_id} to bridge {self._bridge}"
                ) from error
            raise
        self._prepared.add(vm_id)

    async def _add_link(self, host: AsyncIPRoute, name: str, vm_id: str, netns: Path) -> None:
        try:
            descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"VM {vm_id} has no network namespace at {netns}") from error
        try:
            await host.link(
                "add",
                ifname=name,
                kind="veth",
                mtu=self._mtu,
                master=self._bridge_index,
                peer={
                    "ifname": INTERFACE,
                    "net_ns_fd": descriptor,
                    "address": mac_of(self._instance, vm_id),
                    "mtu": self._mtu,
                },
            )
        finally:
            os.close(descriptor)
        netlink.set_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
        made = await netlink.link(host, name)
        if made is None:
            raise Internal(f"link {name} vanished while it was set up")
        # With bridge-nf-call-iptables the bridge itself forwards what was translated, so a pod that
        # calls its own host port must get frames back through the port they came from.
        # With proxyarp_wifi the bridge answers who asks for a pod's IPv4 address itself, from its
        # neighbour entries. What a pod sends to all, or to a MAC address that nobody has, reaches
        # no other pod: each such frame would wake every VM of the node.
        await host.brport(
            "set",
            index=made.index,
            mode=1,
            proxyarp_wifi=1,
            bcast_flood=0,
            unicast_flood=0,
        )
        # Known from the start, and not forgotten while the pod is silent: without this entry the
        # bridge does not answer.
        await host.fdb(
            "replace",
            ifindex=made.index,
            lladdr=mac_of(self._instance, vm_id),
            state=_NUD_NOARP,
            flags=_NTF_MASTER,
        )
        await host.link("set", index=made.index, state="up")

    async def _remove_link(self, vm_id: str) -> None:
        self._prepared.discard(vm_id)
        # The pair goes as one: its other end may be in a namespace that is gone.
        await netlink.delete_link(self._need_host(), link_name(self._instance, vm_id))

    async def discard(self, vm_id: str, netns: Path) -> None:  # noqa: ARG002
        async with self._locked(vm_id):
            await self._remove_link(vm_id)

    # A pod's address and ports.

    async def attach(
        self,
        vm_id: str,
        netns: Path,
        pod: PodIdentity,
        *,
        port_mappings: Sequence[HostPort] = (),
        dns: Dns | None = None,  # noqa: ARG002
        annotations: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> Attachment:
        ports = [port for port in port_mappings if port.host_port]
        async with self._locked(vm_id):
            host_ports.check(ports, pod.id, self._published, ipv6=self._subnet6 is not None)
            address: Address | None = None
            try:
                await self._prepare(vm_id, netns)
                await failpoint.hit("network.attach.address")
                address = self._leases.allocate(pod.id, vm_id)
                await failpoint.hit("network.attach.link")
                mac = mac_of(self._instance, vm_id)
                ips = self._addresses(address)
                for ip in ips:
                    # Permanent ones are not counted against gc_thresh3, by default 1024.
                    await self._need_host().neigh(
                        "replace",
                        family=socket.AF_INET6 if ":" in ip else socket.AF_INET,
                        dst=ip,
                        lladdr=mac,
                        ifindex=self._bridge_index,
                        state=_NUD_PERMANENT,
                    )
                await failpoint.hit("network.attach.ports")
                if ports:
                    await self._publish(pod, ips, ports)
                await failpoint.hit("network.attach.done")
            except BaseException as error:
                await self._undo(vm_id, pod, address)
                if isinstance(error, NetlinkError | OSError):
                    raise netlink.as_error(error, f"attach pod {pod.id}") from error
                raise
        gateways = self._gateways()
        return Attachment(
            ips=ips,
            interface=INTERFACE,
            guest={
                "mac": mac,
                "mtu": self._mtu,
                "addresses": [
                    f"{ip}/{gateway.network.prefixlen}"
                    for ip, gateway in zip(ips, gateways, strict=True)
                ],
                "routes": [
                    {"dst": "::/0" if each.version == 6 else "0.0.0.0/0", "gateway": str(each.ip)}
                    for each in gateways
                ],
                "neighbours": [{"ip": str(each.ip), "mac": self._bridge_mac} for each in gateways],
            },
            opaque={
                "kind": KIND,
                "pod": pod.id,
                "address": str(address),
                "ips": list(ips),
                "ports": [vars(port) for port in ports],
            },
        )

    def _addresses(self, address: Address) -> tuple[str, ...]:
        """All addresses that a lease stands for."""
        if self._subnet6 is None:
            return (str(address),)
        return str(address), str(paired(address, self._leases.subnet, self._subnet6))

    async def detach(
        self,
        vm_id: str,
        netns: Path,  # noqa: ARG002
        pod: PodIdentity,
        opaque: Wire,
    ) -> None:
        async with self._locked(vm_id):
            text = opaque.get("address")
            await self._undo(vm_id, pod, Address(text) if text else None)

    async def _undo(self, vm_id: str, pod: PodIdentity, address: Address | None) -> None:
        """Take a pod out of the network. The address goes last: it must not be given to another
        pod while a port or a neighbour entry still leads to this one."""
        if mine := self._published.of_pod(pod.id):
            async with self._nft_lock:
                await nft.apply(nft.withdraw(self._instance, mine))
                self._published.discard(pod.id)
        await failpoint.hit("network.detach.link")
        await self._remove_link(vm_id)
        await failpoint.hit("network.detach.address")
        held = {lease.address for lease in self._leases.of_pod(pod.id)}
        if address is not None and address not in held and self._leases.holder(address) is None:
            held.add(address)
        for each in held:
            await self._release(each)

    async def _release(self, address: Address) -> None:
        for ip in self._addresses(address):
            with contextlib.suppress(NetlinkError):
                await self._need_host().neigh(
                    "del",
                    family=socket.AF_INET6 if ":" in ip else socket.AF_INET,
                    dst=ip,
                    ifindex=self._bridge_index,
                )
        self._leases.release(address)

    async def _publish(
        self, pod: PodIdentity, ips: Sequence[str], ports: Sequence[HostPort]
    ) -> None:
        async with self._nft_lock:
            # Once more, now that nobody else can publish.
            host_ports.check(ports, pod.id, self._published, ipv6=self._subnet6 is not None)
            added = host_ports.entries(ports, ips)
            # Noted before: a call that is cancelled may have done it, and `_undo` looks here.
            self._published.add(pod.id, added)
            try:
                await nft.apply(nft.add(self._instance, added))
            except ThawError:
                self._published.discard(pod.id)
                raise

    # After a crash.

    async def reconcile(self, live: Mapping[str, Wire]) -> None:
        held: set[Address] = set()
        published = host_ports.Taken()
        for vm_id, opaque in live.items():
            if opaque.get("kind") != KIND:
                continue
            address = Address(opaque["address"])
            held.add(address)
            self._leases.claim(address, opaque["pod"], vm_id)
            ports = [HostPort(**port) for port in opaque.get("ports", ())]
            ips = opaque.get("ips", (str(address),))
            published.add(opaque["pod"], host_ports.entries(ports, ips))
        async with self._nft_lock:
            await nft.apply(nft.publish(self._instance, published))
            self._published = published
        await failpoint.hit("network.reconcile.links")
        for vm_id in self._own_links():
            if vm_id in live:
                # A pooled VM's link may be half made: prepare makes it anew when it is taken.
                if live[vm_id]:
                    self._prepared.add(vm_id)
            else:
                await self._remove_link(vm_id)
        await failpoint.hit("network.reconcile.addresses")
        for lease in self._leases.all():
            if lease.address not in held:
                log.info("address %s of a pod that is gone is free again", lease.address)
                await self._release(lease.address)

    def _own_links(self) -> list[str]:
        """The VM ids behind this instance's veth links."""
        prefix = link_name(self._instance, "")
        return [name[len(prefix) :] for name in netlink.names() if name.startswith(prefix)]

    def _need_host(self) -> Any:
        if self._host is None:
            raise FailedPrecondition("the network is not started")
        return self._host

    @contextlib.asynccontextmanager
    async def _locked(self, vm_id: str) -> AsyncIterator[None]:
        """One operation at a time for each VM; the lock lives as long as someone wants it."""
        lock = self._locks.setdefault(vm_id, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._locks.pop(vm_id, None)


def _forward_ipv6() -> None:
    """Let the host forward IPv6, and still learn its own routes from routers where it did: a host
    that forwards obeys their announcements only where accept_ra is 2."""
    if Path("/proc/sys", _FORWARD6).read_text().strip() != "1":
        for path in Path("/proc/sys/net/ipv6/conf").glob("*/accept_ra"):
            with contextlib.suppress(OSError):
                if path.read_text().strip() == "1":
                    path.write_text("2")
        netlink.set_sysctl(_FORWARD6, "1")
