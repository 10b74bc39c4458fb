"""The built-in network, with real traffic through real taps."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cri.network.api import HostPort, NetworkConfig, PodIdentity
from cri.network.builtin import BuiltinNetwork
from cri.network.tests.conftest import HERE, Machine, Server, echo, sh, trace
from hostlib import failpoint
from hostlib.errors import FailedPrecondition

pytestmark = pytest.mark.usefixtures("host")

ONE, TWO = PodIdentity("a" * 64, "one"), PodIdentity("b" * 64, "two")
BIG = bytes(range(256)) * 8192
"""2 MiB: enough for segmentation offload to matter."""


def config(subnet: str = "10.99.0.0/24") -> NetworkConfig:
    return NetworkConfig(mode="builtin", subnet=subnet)


@pytest.fixture
async def network(tmp_path: Path, host: None) -> AsyncIterator[BuiltinNetwork]:
    made = BuiltinNetwork(config(), "abc123", tmp_path / "state")
    await made.start()
    yield made
    await made.close()


async def test_traffic_host_to_pod_and_pod_to_pod(
    network: BuiltinNetwork, machine: Callable[[str], Machine], serve: Callable[..., Server]
) -> None:
    assert network.ready() == (True, "", "")
    one, two = machine("vm000001"), machine("vm000002")
    await network.prepare(one.id, one.netns)
    first = await network.attach(one.id, one.netns, ONE)
    second = await network.attach(two.id, two.netns, TWO)
    assert first.interface == "eth0"
    assert first.ips != second.ips
    one.configure(first.guest)
    two.configure(second.guest)
    serve(one.guest, 80)
    assert await echo(HERE, first.ips[0], 80, BIG) == BIG
    assert await echo(two.guest, first.ips[0], 80, BIG) == BIG
    serve(HERE, 8080)
    assert await echo(one.guest, "10.99.0.1", 8080, BIG) == BIG
    for vm, pod, held in ((one, ONE, first), (two, TWO, second)):
        await network.detach(vm.id, vm.netns, pod, held.opaque)
        await network.detach(vm.id, vm.netns, pod, held.opaque)


async def test_host_ports_from_loopback_outside_and_the_pod_itself(
    network: BuiltinNetwork, machine: Callable[[str], Machine], serve: Callable[..., Server]
) -> None:
    one, two = machine("vm000001"), machine("vm000002")
    ports = [HostPort("tcp", 80, 8081), HostPort("tcp", 80, 8082, "127.0.0.1")]
    held = await network.attach(one.id, one.netns, ONE, port_mappings=ports)
    one.configure(held.guest)
    serve(one.guest, 80)
    other = await network.attach(two.id, two.netns, TWO)
    two.configure(other.guest)
    assert await echo(HERE, "127.0.0.1", 8081, BIG) == BIG
    assert await echo(HERE, "127.0.0.1", 8082) == b"hello"
    assert await echo(HERE, "10.99.0.1", 8081) == b"hello"
    assert await echo(two.guest, "10.99.0.1", 8081) == b"hello"
    assert await echo(one.guest, "10.99.0.1", 8081) == b"hello"
    with pytest.raises(OSError):
        await echo(HERE, "10.99.0.1", 8082)
    with pytest.raises(FailedPrecondition, match="taken by pod"):
        await network.attach(two.id, two.netns, TWO, port_mappings=ports[:1])
    await network.detach(one.id, one.netns, ONE, held.opaque)
    with pytest.raises(OSError):
        await echo(HERE, "127.0.0.1", 8081)


async def test_both_families_where_there_is_an_ipv6_subnet(
    machine: Callable[[str], Machine], serve: Callable[..., Server], tmp_path: Path
) -> None:
    before = trace()
    both = replace(config(), subnet6="fd00:99::/64")
    network = BuiltinNetwork(both, "abc123", tmp_path / "state")
    await network.start()
    one, two = machine("vm000001"), machine("vm000002")
    ports = [HostPort("tcp", 80, 8081), HostPort("tcp", 80, 8082, "fd00:99::1")]
    first = await network.attach(one.id, one.netns, ONE, port_mappings=ports)
    second = await network.attach(two.id, two.netns, TWO)
    assert first.ips == ("10.99.0.2", "fd00:99::2")
    assert second.ips == ("10.99.0.3", "fd00:99::3")
    one.configure(first.guest)
    two.configure(second.guest)
    serve(one.guest, 80)
    serve(HERE, 8080)
    for ip, gateway in zip(first.ips, ("10.99.0.1", "fd00:99::1"), strict=True):
        assert await echo(HERE, ip, 80, BIG) == BIG
        assert await echo(two.guest, ip, 80, BIG) == BIG
        assert await echo(one.guest, gateway, 8080, BIG) == BIG
        assert await echo(HERE, gateway, 8081) == b"hello"
        assert await echo(HERE, "fd00:99::1", 8082) == b"hello"
        assert await echo(two.guest, gateway, 8081) == b"hello"
        assert await echo(one.guest, gateway, 8081) == b"hello"
    with pytest.raises(OSError):
        await echo(HERE, "::1", 8081)
    # A new daemon publishes both anew; without the subnet it cannot serve the pods that have it.
    await network.close()
    other = BuiltinNetwork(config(), "abc123", tmp_path / "state")
    with pytest.raises(FailedPrecondition, match="fd00:99::1/64"):
        await other.start()
    await other.close()
    network = BuiltinNetwork(both, "abc123", tmp_path / "state")
    await network.start()
    await network.reconcile({one.id: first.opaque, two.id: second.opaque})
    assert await echo(HERE, "fd00:99::1", 8081) == b"hello"
    await network.detach(one.id, one.netns, ONE, first.opaque)
    await network.detach(two.id, two.netns, TWO, second.opaque)
    assert "8081" not in trace()[1]
    await network.close()
    assert trace() == before


async def test_an_address_of_a_family_that_pods_lack(
    network: BuiltinNetwork, machine: Callable[[str], Machine]
) -> None:
    one = machine("vm000001")
    with pytest.raises(FailedPrecondition, match="no IPv6") as caught:
        await network.attach(
            one.id, one.netns, ONE, port_mappings=[HostPort("tcp", 80, 8081, "::1")]
        )
    assert caught.value.hint


async def test_an_unspecified_address_means_every_one(
    network: BuiltinNetwork, machine: Callable[[str], Machine], serve: Callable[..., Server]
) -> None:
    one, two = machine("vm000001"), machine("vm000002")
    ports = [HostPort("tcp", 80, 8081, "0.0.0.0")]
    held = await network.attach(one.id, one.netns, ONE, port_mappings=ports)
    one.configure(held.guest)
    serve(one.guest, 80)
    assert await echo(HERE, "127.0.0.1", 8081) == b"hello"
    with pytest.raises(FailedPrecondition, match="taken by pod"):
        await network.attach(
            two.id, two.netns, TWO, port_mappings=[HostPort("tcp", 80, 8081, "127.0.0.1")]
        )


async def test_a_pod_cannot_reach_the_hosts_loopback(
    network: BuiltinNetwork, machine: Callable[[str], Machine], serve: Callable[..., Server]
) -> None:
    one = machine("vm000001")
    held = await network.attach(one.id, one.netns, ONE)
    one.configure(held.guest)
    sh("ip", "link", "set", "lo", "down", netns=one.guest)
    sh("sysctl", "-w", "net.ipv4.conf.eth0.route_localnet=1", netns=one.guest)
    sh("ip", "route", "add", "127.0.0.0/8", "via", "10.99.0.1", "dev", "eth0", netns=one.guest)
    serve(HERE, 8090)
    with pytest.raises(OSError):
        await echo(one.guest, "127.0.0.1", 8090, timeout=1)


async def test_a_port_in_use_by_the_host_is_refused(
    network: BuiltinNetwork, machine: Callable[[str], Machine], serve: Callable[..., Server]
) -> None:
    one = machine("vm000001")
    serve(HERE, 8070)
    with pytest.raises(FailedPrecondition, match="process on this host"):
        await network.attach(one.id, one.netns, ONE, port_mappings=[HostPort("tcp", 80, 8070)])


@pytest.mark.parametrize(
    "point",
    [
        "network.prepare.link",
        "network.prepare.join",
        "network.attach.address",
        "network.attach.link",
        "network.attach.ports",
        "network.attach.done",
    ],
)
async def test_a_failed_step_leaves_nothing(
    network: BuiltinNetwork, machine: Callable[[str], Machine], point: str, tmp_path: Path
) -> None:
    one = machine("vm000001")
    before = trace()
    failpoint.arm(f"{point}=1*error")
    with pytest.raises(failpoint.Injected):
        await network.attach(one.id, one.netns, ONE, port_mappings=[HostPort("tcp", 80, 8081)])
    assert trace() == before
    assert not list((tmp_path / "state/network/leases").glob("[0-9]*"))
    held = await network.attach(one.id, one.netns, ONE)
    await network.detach(one.id, one.netns, ONE, held.opaque)
    assert trace() == before


@pytest.mark.parametrize("point", ["network.detach.link", "network.detach.address"])
async def test_a_detach_that_fails_can_be_repeated(
    network: BuiltinNetwork, machine: Callable[[str], Machine], point: str
) -> None:
    before = trace()
    one = machine("vm000001")
    held = await network.attach(one.id, one.netns, ONE, port_mappings=[HostPort("tcp", 80, 8081)])
    failpoint.arm(f"{point}=1*error")
    with pytest.raises(failpoint.Injected):
        await network.detach(one.id, one.netns, ONE, held.opaque)
    await network.detach(one.id, one.netns, ONE, held.opaque)
    assert trace() == before


@pytest.mark.parametrize(
    "point", ["network.start", "network.reconcile.links", "network.reconcile.addresses"]
)
async def test_a_start_that_fails_can_be_repeated(
    machine: Callable[[str], Machine], tmp_path: Path, point: str
) -> None:
    """By the same daemon or, as here, by the next; what of a lost pod was not cleared is then."""
    clean = trace()
    lost = BuiltinNetwork(config(), "abc123", tmp_path / "state")
    await lost.start()
    before = trace()
    one, two = machine("vm000001"), machine("vm000002")
    await lost.attach(one.id, one.netns, ONE, port_mappings=[HostPort("tcp", 80, 8081)])
    held = await lost.attach(two.id, two.netns, TWO)
    kept = trace()
    failpoint.arm(f"{point}=1*error")
    for attempt in range(2):
        network = BuiltinNetwork(config(), "abc123", tmp_path / "state")
        with pytest.raises(failpoint.Injected) if attempt == 0 else contextlib.nullcontext():
            await network.start()
            await network.reconcile({two.id: held.opaque})
        if attempt == 0:
            await network.close()
    assert kept != trace() != before
    await network.detach(two.id, two.netns, TWO, held.opaque)
    assert trace() == before
    await network.close()
    await lost.close()
    assert trace() == clean


async def test_everything_goes_with_the_last_pod(
    machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    before, descriptors = trace(), len(os.listdir("/proc/self/fd"))
    network = BuiltinNetwork(config(), "abc123", tmp_path / "state")
    await network.start()
    one = machine("vm000001")
    held = await network.attach(one.id, one.netns, ONE, port_mappings=[HostPort("tcp", 80, 8081)])
    one.close()
    await network.detach(one.id, one.netns, ONE, held.opaque)
    await network.close()
    assert trace() == before
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_a_new_daemon_frees_what_nobody_holds(
    machine: Callable[[str], Machine], serve: Callable[..., Server], tmp_path: Path
) -> None:
    first = BuiltinNetwork(config(), "abc123", tmp_path / "state")
    await first.start()
    one, two, three = (machine(f"vm00000{n}") for n in (1, 2, 3))
    ports = [HostPort("tcp", 80, 8081)]
    held = await first.attach(one.id, one.netns, ONE, port_mappings=ports)
    lost = [HostPort("tcp", 80, 8082)]
    await first.attach(two.id, two.netns, TWO, port_mappings=lost)
    await first.prepare(three.id, three.netns)
    await first.close()
    second = BuiltinNetwork(config(), "abc123", tmp_path / "state")
    await second.start()
    await second.reconcile({one.id: held.opaque, three.id: {}})
    links, rules = trace()
    assert "tabc123vm000002" not in links
    assert "8082" not in rules
    assert "tabc123vm000003" in links
    one.configure(held.guest)
    serve(one.guest, 80)
    assert await echo(HERE, "127.0.0.1", 8081) == b"hello"
    third = await second.attach(three.id, three.netns, TWO)
    assert third.ips[0] not in (held.ips[0], "10.99.0.3")
    await second.detach(one.id, one.netns, ONE, held.opaque)
    await second.detach(three.id, three.netns, TWO, {})
    await second.close()
    assert "abc123" not in " ".join(trace())


async def test_instances_side_by_side(
    network: BuiltinNetwork, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    clash = BuiltinNetwork(config(), "def456", tmp_path / "other")
    with pytest.raises(FailedPrecondition, match="in use on this host"):
        await clash.start()
    assert clash.ready()[0] is False
    await clash.close()
    other = BuiltinNetwork(config("10.98.0.0/24"), "def456", tmp_path / "other")
    await other.start()
    one = machine("vm000001")
    held = await network.attach(one.id, one.netns, ONE)
    await other.reconcile({})
    await other.close()
    links, rules = trace()
    assert "thawabc123" in links
    assert "tabc123vm000001" in links
    assert "def456" not in links + rules
    await network.detach(one.id, one.netns, ONE, held.opaque)
