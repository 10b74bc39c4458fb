"""The built-in network on a full node: what a pod's ports cost, and a bridge that is full."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from cri.network import netlink, nft
from cri.network.api import HostPort, NetworkConfig, PodIdentity, Wire
from cri.network.builtin import KIND, BuiltinNetwork, mac_of
from cri.network.tests.conftest import Machine, Server, echo, in_netns, sh, trace
from hostlib import failpoint
from hostlib.errors import ResourceExhausted

pytestmark = pytest.mark.usefixtures("host")

POD = PodIdentity("f" * 64, "one")
BRIDGE = "thawabc123"
ETH_P_ALL = 0x0003


@pytest.fixture
async def network(tmp_path: Path, host: None) -> AsyncIterator[BuiltinNetwork]:
    made = BuiltinNetwork(NetworkConfig(subnet="10.99.0.0/16"), "abc123", tmp_path / "state")
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What nft is told."""
    told: list[str] = []
    apply = nft.apply

    async def note(transaction: str) -> None:
        told.append(transaction)
        await apply(transaction)

    monkeypatch.setattr(nft, "apply", note)
    return told


def crowd(count: int) -> dict[str, Wire]:
    """Pods of a former daemon, each with two host ports."""
    return {
        f"crowd{number:03x}": {
            "kind": KIND,
            "pod": f"{number:064x}",
            "address": f"10.99.{8 + number // 256}.{number % 256}",
            "ports": [vars(HostPort("tcp", 80, 20000 + number + n)) for n in (0, 5000)],
        }
        for number in range(count)
    }


async def test_a_pods_ports_are_a_change_of_their_own(
    network: BuiltinNetwork, machine: Callable[[str], Machine], transactions: list[str]
) -> None:
    await network.reconcile(crowd(1000))
    assert sh("nft", "list", "map", "inet", "thaw-abc123", "ports").count(" : ") >= 2000
    before = trace()
    one = machine("vm000001")
    transactions.clear()
    ports = [HostPort("tcp", 80, 8081), HostPort("udp", 53, 8082)]
    held = await network.attach(one.id, one.netns, POD, port_mappings=ports)
    await network.detach(one.id, one.netns, POD, held.opaque)
    added, withdrawn = transactions
    assert added.count("\n") == 2
    assert withdrawn.count("\n") == 4
    assert "flush" not in added + withdrawn
    assert trace() == before


async def test_a_port_whose_element_is_gone_can_be_withdrawn(
    network: BuiltinNetwork, machine: Callable[[str], Machine]
) -> None:
    one = machine("vm000001")
    ports = [HostPort("tcp", 80, 8081)]
    held = await network.attach(one.id, one.netns, POD, port_mappings=ports)
    sh("nft", "flush", "map", "inet", "thaw-abc123", "ports")
    await network.detach(one.id, one.netns, POD, held.opaque)
    again = await network.attach(one.id, one.netns, POD, port_mappings=ports)
    await network.detach(one.id, one.netns, POD, again.opaque)


async def test_ports_that_cannot_be_published_stay_free(
    network: BuiltinNetwork, machine: Callable[[str], Machine]
) -> None:
    one = machine("vm000001")
    ports = [HostPort("tcp", 80, 8081)]
    sh("nft", "delete", "table", "inet", "thaw-abc123")
    with pytest.raises(Exception, match="nft"):
        await network.attach(one.id, one.netns, POD, port_mappings=ports)
    assert "tabc123" not in trace()[0]
    await network.start()
    held = await network.attach(one.id, one.netns, POD, port_mappings=ports)
    await network.detach(one.id, one.netns, POD, held.opaque)


async def test_neighbours_stay_as_long_as_their_pods(
    network: BuiltinNetwork, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    one, two = machine("vm000001"), machine("vm000002")
    first = await network.attach(one.id, one.netns, POD)
    second = await network.attach(two.id, two.netns, PodIdentity("e" * 64))
    for held in (first, second):
        assert "PERMANENT" in sh("ip", "neigh", "show", held.ips[0], "dev", BRIDGE)
    # A daemon that was killed knows nothing of the second.
    other = BuiltinNetwork(NetworkConfig(subnet="10.99.0.0/16"), "abc123", tmp_path / "state")
    await other.start()
    await other.reconcile({one.id: first.opaque})
    assert first.ips[0] in sh("ip", "neigh", "show", "dev", BRIDGE)
    assert second.ips[0] not in sh("ip", "neigh", "show", "dev", BRIDGE)
    await other.detach(one.id, one.netns, POD, first.opaque)
    assert sh("ip", "neigh", "show", "nud", "permanent", "dev", BRIDGE) == ""
    await other.close()


async def test_who_asks_for_a_pod_wakes_no_other(
    network: BuiltinNetwork, machine: Callable[[str], Machine], serve: Callable[..., Server]
) -> None:
    one, two, three = (machine(f"vm00000{number}") for number in (1, 2, 3))
    ips = []
    for vm, name in ((one, "e"), (two, "d"), (three, "c")):
        held = await network.attach(vm.id, vm.netns, PodIdentity(name * 64))
        vm.configure(held.guest)
        ips.append(held.ips[0])
    serve(two.guest, 80)
    with listener(three) as heard:
        assert await echo(one.guest, ips[1], 80) == b"hello"
        assert mac_of("abc123", two.id) in sh("ip", "neigh", "show", ips[1], netns=one.guest)
        # Nobody has this one: the bridge has no answer.
        in_netns(one.guest, lambda: tell("10.99.200.200"))
        in_netns(one.guest, lambda: tell("255.255.255.255"))
        # After all that would have come before.
        in_netns(one.guest, lambda: tell(ips[2]))
        loop = asyncio.get_running_loop()
        destinations: list[str] = []
        while destinations[-1:] != [mac_of("abc123", three.id)]:
            frame = await asyncio.wait_for(loop.sock_recv(heard, 2048), 60)
            destinations.append(frame[:6].hex(":"))
    assert "ff:ff:ff:ff:ff:ff" not in destinations


@contextlib.contextmanager
def listener(vm: Machine) -> Iterator[socket.socket]:
    """A socket that gets the frames that reach a guest."""
    found: list[socket.socket] = []

    def body() -> None:
        found.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
        found[0].bind(("eth0", ETH_P_ALL))

    in_netns(vm.guest, body)
    found[0].setblocking(False)
    with found[0]:
        yield found[0]


def tell(ip: str) -> None:
    """Send something to an address; the kernel looks for who has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(b"x", (ip, 9))


def fill(ports: int) -> None:
    """Give the bridge so many ports: both ends of veth pairs, all down."""
    ends = [f"p{number}" for number in range(ports + ports % 2)]
    lines = [
        f"link add {one} type veth peer name {other}"
        for one, other in zip(ends[::2], ends[1::2], strict=True)
    ]
    lines += [f"link set {end} master {BRIDGE}" for end in ends[:ports]]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


async def test_a_full_bridge_is_told_and_leaves_nothing(
    network: BuiltinNetwork, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    fill(netlink.BRIDGE_PORTS - 1)
    one, two = machine("vm000001"), machine("vm000002")
    held = await network.attach(one.id, one.netns, POD)
    before = trace()
    with pytest.raises(ResourceExhausted, match="1023 ports") as caught:
        await network.attach(two.id, two.netns, PodIdentity("e" * 64))
    assert caught.value.hint
    assert trace() == before
    leases = [path.name for path in (tmp_path / "state/network/leases").glob("[0-9]*")]
    assert leases == [f"{held.ips[0]}.json"]
    # The port of a pod that goes is the next one's.
    await network.detach(one.id, one.netns, POD, held.opaque)
    again = await network.attach(two.id, two.netns, POD)
    await network.detach(two.id, two.netns, POD, again.opaque)


async def test_no_vm_is_made_for_a_bridge_that_is_full(
    network: BuiltinNetwork, monkeypatch: pytest.MonkeyPatch, machine: Callable[[str], Machine]
) -> None:
    monkeypatch.setattr(netlink, "BRIDGE_PORTS", 1)
    one = machine("vm000001")
    network.check_room()
    await network.prepare(one.id, one.netns)
    with pytest.raises(ResourceExhausted):
        network.check_room()
    await network.discard(one.id, one.netns)
    network.check_room()
    failpoint.arm("network.prepare.join=1*error")
    with pytest.raises(failpoint.Injected):
        await network.prepare(one.id, one.netns)
    network.check_room()
