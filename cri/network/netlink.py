"""rtnetlink for pod networks: in the host's namespace, and for a moment inside a VM's.

A socket stays in the namespace in which it was made, whatever its owner does later. So a
short-lived thread enters the VM's namespace, opens a socket, and ends; the event loop then
uses that socket as any other. No thread that lives on ever changes its namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cri.network.api import Wire
from hostlib import linux
from hostlib.errors import FailedPrecondition, Internal, ResourceExhausted, ThawError
from hostlib.tasks import in_thread

_ETH_P_ALL: Final = 3
_INGRESS: Final = 0xFFFF0000
"""The handle of an ingress qdisc, ``ffff:``."""
_FILTER_PRIORITY: Final = 1
_MAX_OPEN: Final = 32
"""Namespaces worked in at a time: each costs a descriptor and one of pyroute2's 180 local ports."""

_NO_SUCH: Final = (errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL)
_RT_SCOPE_LINK: Final = 253
_RTPROT_KERNEL: Final = 2
_RTN_UNICAST: Final = 1
_NUD_PERMANENT: Final = 0x80
_RT_TABLE_MAIN: Final = 254

BRIDGE_PORTS: Final = 1023
"""The most ports of one bridge: BR_MAX_PORTS of the kernel's net/bridge/br_private.h is 1024, and
number 0 is none."""

_gate = asyncio.Semaphore(_MAX_OPEN)


@dataclass(frozen=True)
class Link:
    """An interface, as the kernel tells it."""

    index: int
    name: str
    mac: str
    mtu: int
    master: int
    up: bool


def as_error(error: NetlinkError | OSError, doing: str) -> ThawError:
    """A kernel refusal in Thaw's words; `doing` completes "cannot"."""
    code = error.code if isinstance(error, NetlinkError) else error.errno
    text = os.strerror(code) if code else str(error)
    if code in (errno.EPERM, errno.EACCES):
        return FailedPrecondition(f"cannot {doing}: {text}", hint="run thawd as root")
    if code == errno.EXFULL:
        return bridge_full(doing)
    return Internal(f"cannot {doing}: {text}")


def bridge_full(doing: str) -> ResourceExhausted:
    """No port is left for another VM; `doing` completes "cannot"."""
    return ResourceExhausted(
        f"cannot {doing}: it has {BRIDGE_PORTS} ports, the most that a Linux bridge has",
        hint="remove pods, lower pool.size, or use a CNI network, which need not be a bridge",
    )


def is_missing(error: NetlinkError) -> bool:
    """Whether what was asked to go is gone already."""
    return error.code in _NO_SUCH


def _open_inside(netns: Path, *, ipv6: bool, result: list[int | OSError]) -> None:
    try:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.setns(descriptor, linux.CLONE_NEWNET)
        finally:
            os.close(descriptor)
        if not ipv6:
            # Else the namespace itself would announce link-local addresses with the guest's MAC.
            set_sysctl("net/ipv6/conf/default/disable_ipv6", "1")
            set_sysctl("net/ipv6/conf/all/disable_ipv6", "1")
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        result.append(socket.socket(socket.AF_NETLINK, kind, 0).detach())
    except OSError as error:
        result.append(error)


def _socket_inside(netns: Path, ipv6: bool) -> int:
    result: list[int | OSError] = []
    thread = threading.Thread(
        target=_open_inside, args=(netns,), kwargs={"ipv6": ipv6, "result": result}
    )
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]


@contextlib.asynccontextmanager
async def host() -> AsyncIterator[AsyncIPRoute]:
    """rtnetlink in the daemon's own namespace."""
    routes = AsyncIPRoute()
    try:
        yield routes
    finally:
        routes.close()


@contextlib.asynccontextmanager
async def inside(netns: Path, *, ipv6: bool) -> AsyncIterator[AsyncIPRoute]:
    """rtnetlink in the namespace pinned at `netns`; nothing stays open afterwards.

    Without `ipv6` the namespace's own stack is kept from speaking it. Raises OSError when the
    namespace is gone.
    """
    async with _gate:
        descriptor = await in_thread(_socket_inside, netns, ipv6)
        routes = AsyncIPRoute(fileno=descriptor)
        # pyroute2 takes the descriptor over at its first use: make that now.
        await routes.setup_endpoint()
        try:
            yield routes
        finally:
            routes.close()


def set_sysctl(name: str, value: str) -> None:
    """Set ``/proc/sys/<name>`` in this thread's network namespace, where it exists."""
    path = Path("/proc/sys") / name
    with contextlib.suppress(FileNotFoundError):
        if path.read_text().strip() != value:
            path.write_text(value)


def names() -> list[str]:
    """The names of the interfaces in this thread's network namespace: what `links` tells too, at a
    hundredth of its cost."""
    return [name for _, name in socket.if_nameindex()]


async def links(routes: AsyncIPRoute) -> dict[str, Link]:
    """Every interface of the namespace, by name."""
    found = {}
    async for message in await routes.get_links():
        link = _link(message)
        found[link.name] = link
    return found


async def link(routes: AsyncIPRoute, name: str) -> Link | None:
    """One interface; None when there is none of that name."""
    try:
        answer = await routes.link("get", ifname=name)
    except NetlinkError as error:
        if is_missing(error):
            return None
        raise
    return _link(answer[0]) if answer else None


def _link(message: Any) -> Link:
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        master=message.get_attr("IFLA_MASTER") or 0,
        up=bool(message["flags"] & 1),
    )


async def delete_link(routes: AsyncIPRoute, name: str) -> bool:
    """Delete an interface; False when there was none."""
    found = await link(routes, name)
    if found is None:
        return False
    try:
        await routes.link("del", index=found.index)
    except NetlinkError as error:
        if is_missing(error):
            return False
        raise
    return True


async def join(routes: AsyncIPRoute, first: Link, second: Link) -> None:
    """Redirect all that enters one interface out of the other, both ways, and bring both up.

    The kernel's own stack never sees these frames. u32 matches everything: cls_matchall is not in
    every kernel. Idempotent: what was there before is replaced.
    """
    mtu = min(first.mtu, second.mtu)
    for source, target in ((first, second), (second, first)):
        try:
            await routes.tc("add", "ingress", source.index)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            await routes.tc("del", "ingress", source.index)
            await routes.tc("add", "ingress", source.index)
        await routes.tc(
            "add-filter",
            "u32",
            index=source.index,
            parent=_INGRESS,
            prio=_FILTER_PRIORITY,
            protocol=_ETH_P_ALL,
            target=0,
            keys=["0x0/0x0+0"],
            action={
                "kind": "mirred",
                "direction": "egress",
                "action": "redirect",
                "ifindex": target.index,
            },
        )
        if source.mtu != mtu:
            await routes.link("set", index=source.index, mtu=mtu)
        if not source.up:
            await routes.link("set", index=source.index, state="up")


async def configuration(routes: AsyncIPRoute, device: Link) -> Wire:
    """What a plugin configured on `device`: addresses, routes and permanent neighbours, as the
    guest agent's ``network`` object takes them."""
    addresses, on_link, through, neighbours = [], [], [], []
    async for message in await routes.get_addr(index=device.index):
        local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        # A link-local address is derived from the MAC; the guest makes its own.
        if message["index"] == device.index and message["scope"] != _RT_SCOPE_LINK:
            addresses.append(f"{local}/{message['prefixlen']}")
    for family, everything in ((socket.AF_INET, "0.0.0.0/0"), (socket.AF_INET6, "::/0")):
        async for message in await routes.get_routes(family=family, table=_RT_TABLE_MAIN):
            if message.get_attr("RTA_OIF") != device.index or message["type"] != _RTN_UNICAST:
                continue
            # The guest's kernel makes those of proto kernel from the addresses by itself.
            if message["proto"] == _RTPROT_KERNEL:
                continue
            target = message.get_attr("RTA_DST")
            dst = f"{target}/{message['dst_len']}" if target else everything
            gateway = message.get_attr("RTA_GATEWAY")
            if gateway:
                through.append({"dst": dst, "gateway": gateway})
            else:
                on_link.append({"dst": dst})
    async for message in await routes.get_neighbours(ifindex=device.index):
        if message["ifindex"] == device.index and message["state"] & _NUD_PERMANENT:
            mac, ip = message.get_attr("NDA_LLADDR"), message.get_attr("NDA_DST")
            if mac and ip and mac != "00:00:00:00:00:00":
                neighbours.append({"ip": ip, "mac": mac})
    return {
        "mac": device.mac,
        "mtu": device.mtu,
        "addresses": addresses,
        # A gateway must be reachable before a route may name it.
        "routes": on_link + through,
        "neighbours": neighbours,
    }
