"""The built-in network on the kernel's bridge and rules, in a namespace of this process alone."""

from __future__ import annotations

import asyncio
import ipaddress
import subprocess
import threading
from pathlib import Path
from typing import Final

from bench.scale.figure import Figure, seconds, seconds_of, used
from cri.network import nft
from cri.network.api import TAP, HostPort, NetworkConfig, PodIdentity, Wire
from cri.network.builtin import KIND, BuiltinNetwork, bridge_name
from cri.network.ipam import Leases
from hostlib import ids, linux
from hostlib.process import ENVIRONMENT
from shim import sandbox
from vmm import tap

_INSTANCE: Final = "5ca1e0"
_SUBNET: Final = "10.99.0.0/16"
_FIRST_PORT: Final = 20000
PORTS: Final = [HostPort("tcp", 80, 8080)]
POD: Final = PodIdentity("f" * 64, "one", "default", "one")


def a_vm(pin: Path) -> int:
    """A VM's namespace at `pin`, with its tap; the tap's descriptor."""
    found: list[int] = []

    def body() -> None:
        sandbox.make_network_namespace(pin)
        found.append(tap.open_tap(TAP))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return found[0]


def crowd(count: int) -> dict[str, Wire]:
    """What `count` pods, each with a host port, have in their records."""
    first = ipaddress.IPv4Network(_SUBNET)[2]
    return {
        f"crowd{number:03x}"[:8]: {
            "kind": KIND,
            "pod": ids.new_object_id(),
            "address": str(first + number),
            "ips": [str(first + number)],
            "ports": [vars(HostPort("tcp", 80, _FIRST_PORT + number))],
        }
        for number in range(count)
    }


def fill_bridge(bridge: str, count: int) -> None:
    """Give the bridge `count` ports more: both ends of veth pairs that nobody uses, all down."""
    ends = [f"p{number}" for number in range(count + count % 2)]
    lines = [
        f"link add {one} type veth peer name {other}\n"
        for one, other in zip(ends[::2], ends[1::2], strict=True)
    ]
    lines += [f"link set {end} master {bridge}\n" for end in ends[:count]]
    subprocess.run(
        ["ip", "-batch", "-"], input="".join(lines), text=True, check=True, env=dict(ENVIRONMENT)
    )


def network(count: int, folder: Path) -> list[Figure]:
    """One pod's place in the network, beside `count` others."""
    # The process's alone; the machine's stays untouched, and all goes with the process.
    linux.unshare(linux.CLONE_NEWNET)
    pin = folder / "netns" / "vm000001"
    a_vm(pin)
    try:
        return asyncio.run(_network(count, folder, pin))
    finally:
        linux.umount(str(pin))


async def _network(count: int, folder: Path, pin: Path) -> list[Figure]:
    made = BuiltinNetwork(NetworkConfig(subnet=_SUBNET), _INSTANCE, folder / "state")
    await made.start()
    live = crowd(count)
    begun = used()
    await made.reconcile(live)
    reconciled = used() - begun
    fill_bridge(bridge_name(_INSTANCE), count)
    written: list[int] = []
    apply = nft.apply

    async def counted(transaction: str) -> None:
        written.append(len(transaction))
        await apply(transaction)

    nft.apply = counted

    async def life(ports: list[HostPort]) -> None:
        held = await made.attach("vm000001", pin, POD, port_mappings=ports)
        await made.detach("vm000001", pin, POD, held.opaque)

    plain = await seconds_of(lambda: life([]), 3)
    assert not written
    ported = await seconds_of(lambda: life(PORTS), 3)
    return [
        Figure("attach and detach", plain * 1e3, "ms"),
        Figure("the same with a host port", ported * 1e3, "ms"),
        Figure("bytes of rules for a host port", max(written), "bytes"),
        Figure("reconciliation at a start", reconciled * 1e3 / count, "ms"),
    ]


def leases(count: int, folder: Path) -> list[Figure]:
    """An address, beside `count` that are held."""
    mine = Leases(folder / "leases", ipaddress.IPv4Network(_SUBNET))
    mine.load()
    for number in range(count):
        mine.allocate(f"pod{number}", f"vm{number}")

    def one() -> None:
        mine.allocate("one", "one")
        for lease in mine.of_pod("one"):
            mine.release(lease.address)

    return [Figure("address given and taken", seconds(one, 50) * 1e6, "us")]
