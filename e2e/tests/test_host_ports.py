"""Host ports of the built-in network, with real traffic from outside, the host and loopback."""

from __future__ import annotations

import json
import socket

import httpx
import pytest

from cri.api import v1_pb2
from demo.images import PAGE
from e2e.harness import traffic
from e2e.harness.daemon import Daemon
from e2e.harness.outside import Outside, reach, sh
from e2e.harness.pods import Pod
from e2e.harness.refs import NGINX, WEBAPP
from e2e.harness.registry import free_port
from e2e.harness.waiting import until
from hostlib import errors

PROTOCOLS: dict[str, v1_pb2.Protocol] = {"tcp": v1_pb2.TCP, "udp": v1_pb2.UDP}
ECHO = ("/usr/bin/python3", "-c", traffic.SOURCE, "serve", "7000")


def port_mapping(
    port: int, kind: v1_pb2.Protocol = v1_pb2.TCP, host_ip: str = ""
) -> v1_pb2.PortMapping:
    return v1_pb2.PortMapping(protocol=kind, container_port=7000, host_port=port, host_ip=host_ip)


def test_a_host_port_leads_to_the_pod_until_it_is_removed(daemon: Daemon) -> None:
    port = free_port()
    pod = Pod.run(daemon, port_mappings=[{"container_port": 80, "host_port": port}])
    pod.start(NGINX)
    url = f"http://127.0.0.1:{port}/"

    def ask() -> str | None:
        try:
            return httpx.get(url, trust_env=False, timeout=5).text
        except httpx.TransportError:
            return None

    assert until(f"{url} answers", ask) == PAGE
    pod.remove()
    with pytest.raises(httpx.TransportError):
        httpx.get(url, trust_env=False, timeout=2)


def test_tcp_and_udp_from_outside_the_host_and_loopback(daemon: Daemon, outside: Outside) -> None:
    everywhere, named, local = (free_port() for _ in range(3))
    pod = Pod.run(
        daemon,
        port_mappings=[
            port_mapping(port, kind, host_ip)
            for kind in PROTOCOLS.values()
            for port, host_ip in ((everywhere, ""), (named, outside.gateway), (local, "127.0.0.1"))
        ],
    )
    pod.start(WEBAPP, ECHO)
    for kind in PROTOCOLS:
        # The pod sees who calls from outside; the host itself comes as the bridge.
        assert reach(kind, pod.ip, 7000).endswith(" hello")
        assert outside.probe(kind, outside.gateway, everywhere) == f"{outside.address} hello"
        assert outside.probe(kind, outside.gateway, named) == f"{outside.address} hello"
        for address, port in (
            ("127.0.0.1", everywhere),
            (outside.gateway, everywhere),
            (outside.gateway, named),
            ("127.0.0.1", local),
        ):
            assert traffic.probe(kind, address, port).endswith(" hello"), (kind, address, port)
        # An address of the host that a mapping does not name stays closed.
        assert not outside.reaches(kind, outside.gateway, local)
        with pytest.raises(OSError):
            traffic.probe(kind, "127.0.0.1", named)
    pod.remove()
    for kind in PROTOCOLS:
        assert not outside.reaches(kind, outside.gateway, everywhere)


def test_an_sctp_port_is_accepted_and_translated(daemon: Daemon) -> None:
    # Debian's kernel, which the guest runs, loads SCTP as a module that guests do not have: no
    # traffic is possible, so what the host would do with it is looked at.
    port = free_port()
    pod = Pod.run(daemon, port_mappings=[port_mapping(port, v1_pb2.SCTP)])

    def rules() -> list[object]:
        table = json.loads(
            sh("nft", "-j", "list", "map", "inet", f"thaw-{daemon.instance}", "ports")
        )
        (found,) = (each["map"] for each in table["nftables"] if "map" in each)
        elements: list[object] = found.get("elem", [])
        return elements

    assert [{"concat": ["sctp", port]}, {"concat": [pod.ip, 7000]}] in rules()
    pod.remove()
    assert not rules()


def leases(daemon: Daemon) -> list[str]:
    return sorted(path.name for path in (daemon.state / "network" / "leases").glob("[0-9]*"))


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_a_port_of_another_pod_is_refused(daemon: Daemon, kind: str) -> None:
    mapping = port_mapping(free_port(), PROTOCOLS[kind])
    holder = Pod.run(daemon, "holder", port_mappings=[mapping])
    before = leases(daemon)
    with pytest.raises(errors.FailedPrecondition) as caught:
        Pod.run(daemon, "second", port_mappings=[mapping])
    assert f"{mapping.host_port}/{kind}" in caught.value.message
    assert holder.id in caught.value.message
    assert caught.value.hint
    assert [pod.id for pod in daemon.client.pods()] == [holder.id]
    assert leases(daemon) == before
    # The same number of another protocol, and the same one at another address, are free.
    other = v1_pb2.TCP if kind == "udp" else v1_pb2.UDP
    Pod.run(daemon, "other", port_mappings=[port_mapping(mapping.host_port, other)])
    holder.remove()
    Pod.run(daemon, "second", port_mappings=[mapping])


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_a_port_of_a_process_on_the_host_is_refused(daemon: Daemon, kind: str) -> None:
    before = leases(daemon)
    with socket.socket(
        socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    ) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == "tcp":
            taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(errors.FailedPrecondition, match=f"{port}/{kind}") as caught:
            Pod.run(daemon, port_mappings=[port_mapping(port, PROTOCOLS[kind])])
        assert caught.value.hint
    assert not daemon.client.pods()
    assert not daemon.bound_vms()
    assert leases(daemon) == before
