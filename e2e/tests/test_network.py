"""The built-in network with real traffic: to the outside, names, addresses, the MTU."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from cri.api import v1_pb2
from demo.images import PAGE
from e2e.harness import traffic
from e2e.harness.daemon import Daemon
from e2e.harness.outside import Outside, reach, sh, subnet
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import NGINX, SHELL, SLEEP, WEBAPP
from e2e.harness.registry import free_port
from e2e.harness.streams import listening
from e2e.harness.waiting import until
from hostlib import errors


def talk(container: Container, *argv: str) -> str:
    """What `traffic` says inside a container that has Python."""
    command = ["/usr/bin/python3", "-c", traffic.SOURCE, *argv]
    answer = container.pod.daemon.client.exec_sync(container.id, command, 60)
    assert answer.exit_code == 0, answer.stderr
    return answer.stdout.decode().strip()


def test_a_pod_reaches_the_outside_with_the_hosts_address(daemon: Daemon, outside: Outside) -> None:
    outside.serve(7000)
    client = Pod.run(daemon).start(WEBAPP, SLEEP)
    for kind in ("tcp", "udp"):
        # The outside has no route to the pod: only the host's own address gets an answer.
        assert talk(client, "probe", kind, outside.address, "7000") == f"{outside.gateway} hello"


def test_names_are_looked_up_as_the_pod_says(daemon: Daemon, outside: Outside) -> None:
    outside.names({"web.pods.test": "203.0.113.7"})
    pod = Pod.run(
        daemon,
        dns_config=v1_pb2.DNSConfig(
            servers=[outside.address], searches=["pods.test"], options=["ndots:3", "timeout:10"]
        ),
    )
    client = pod.start(WEBAPP, SLEEP)
    assert client.sh("cat /etc/resolv.conf").splitlines() == [
        "search pods.test",
        f"nameserver {outside.address}",
        "options ndots:3 timeout:10",
    ]
    assert talk(client, "lookup", "web") == "203.0.113.7"
    assert talk(client, "lookup", "web.pods.test") == "203.0.113.7"
    with pytest.raises(AssertionError, match="gaierror"):
        talk(client, "lookup", "nobody")


def test_the_hosts_name_servers_without_a_dns_config(daemon: Daemon) -> None:
    def servers(text: str) -> list[str]:
        lines = [line.split() for line in text.splitlines()]
        return [words[1] for words in lines if words[:1] == ["nameserver"]]

    host = servers(Path("/etc/resolv.conf").read_text())
    if all(ipaddress.ip_address(server).is_loopback for server in host):
        pytest.skip("the host's name servers listen on its loopback, where no pod can ask them")
    inside = Pod.run(daemon).start(SHELL, SLEEP).sh("cat /etc/resolv.conf")
    assert servers(inside) == [s for s in host if not ipaddress.ip_address(s).is_loopback]


def test_the_configured_name_servers_without_a_dns_config(
    make_daemon: Callable[..., Daemon], outside: Outside
) -> None:
    outside.names({"web.pods.test": "203.0.113.8"})
    settings = {"network": {"dns_servers": [outside.address], "mtu": 1300}}
    daemon = make_daemon(settings=settings).start()
    for image in (WEBAPP, NGINX):
        daemon.client.pull_image(image)
    client = Pod.run(daemon).start(WEBAPP, SLEEP)
    assert client.sh("cat /etc/resolv.conf") == f"nameserver {outside.address}"
    assert talk(client, "lookup", "web.pods.test") == "203.0.113.8"
    # Of the MTU, and that segments which are cut by it arrive.
    assert client.sh("cat /sys/class/net/eth0/mtu") == "1300"
    assert "mtu 1300 " in sh("ip", "link", "show", f"thaw{daemon.instance}")
    server = Pod.run(daemon)
    server.start(NGINX)
    assert server.get().text == PAGE
    size = client.sh(f"wget -qO- http://{server.ip}/ | wc -c")
    assert int(size) == len(PAGE)
    outside.serve(7000)
    line = "x" * 20_000
    assert len(talk(client, "probe", "udp", outside.address, "7000", line)) > len(line)


def test_addresses_are_not_given_twice_and_come_back(make_daemon: Callable[..., Daemon]) -> None:
    # Five addresses for pods: the network's, the bridge's and the broadcast's are none.
    settings = {"network": {"subnet": subnet(29)}, "pool": {"size": 0}}
    daemon = make_daemon(settings=settings)
    daemon.start().client.pull_image(SHELL)
    pods = [Pod.run(daemon) for _ in range(3)]
    before = {pod.id: pod.ip for pod in pods}
    # Crashes between an address and its pod, more of them than there are free addresses.
    for point in ("network.attach.link", "network.attach.done", "sandbox.bind"):
        daemon.arm(f"{point}=kill")
        with pytest.raises(errors.ThawError):
            Pod.run(daemon)
        daemon.await_end()
        daemon.arm("")
        daemon.start()
    assert {pod.id: pod.ip for pod in pods} == before
    pods += [Pod.run(daemon) for _ in range(2)]
    assert len({pod.ip for pod in pods}) == 5
    with pytest.raises(errors.ResourceExhausted) as caught:
        Pod.run(daemon, "one-too-many")
    assert caught.value.hint
    # The one that outlived three daemons is still reached.
    server = pods[1].start(SHELL, ["/bin/sh", "-c", "echo served | nc -l -p 7000; sleep 1000"])
    listening(server, 7000)
    assert pods[2].start(SHELL, SLEEP).sh(f"nc {pods[1].ip} 7000") == "served"
    pods[0].remove()
    assert Pod.run(daemon, "in-its-place").ip == before[pods[0].id]


def test_a_later_pod_with_an_address_is_found_by_who_knew_the_former(
    make_daemon: Callable[..., Daemon],
) -> None:
    settings = {"network": {"subnet": subnet(29)}, "pool": {"size": 0}}
    daemon = make_daemon(settings=settings).start()
    daemon.client.pull_image(SHELL)
    serve = ["/bin/sh", "-c", "echo served | nc -l -p 7000; sleep 1000"]
    # What takes more than a minute by default: to forget a neighbour, and to look who is to be.
    hasty = {
        "net.ipv4.neigh.eth0.gc_stale_time": "1",
        "net.ipv4.neigh.default.base_reachable_time_ms": "1000",
    }
    linux = v1_pb2.LinuxPodSandboxConfig(sysctls=hasty)
    client = Pod.run(daemon, "client", linux=linux).start(SHELL, SLEEP)
    former = Pod.run(daemon)
    address = former.ip
    listening(former.start(SHELL, serve), 7000)
    assert client.sh(f"nc {address} 7000") == "served"
    assert address in client.sh("cat /proc/net/arp")
    former.remove()
    until("the client forgets", lambda: address not in client.sh("cat /proc/net/arp"), 60, pause=1)
    while (later := Pod.run(daemon)).ip != address:
        pass
    listening(later.start(SHELL, serve), 7000)
    assert client.sh(f"nc {address} 7000") == "served"


def test_addresses_of_both_families(make_daemon: Callable[..., Daemon], outside: Outside) -> None:
    subnet6 = ipaddress.IPv6Network(f"fd{secrets.token_hex(1)}:{secrets.token_hex(2)}::/64")
    daemon = make_daemon(settings={"network": {"subnet6": str(subnet6)}}).start()
    daemon.client.pull_image(WEBAPP)
    port = free_port()
    mapping = v1_pb2.PortMapping(container_port=7000, host_port=port)
    server = Pod.run(daemon, port_mappings=[mapping])
    server.start(WEBAPP, ["/usr/bin/python3", "-c", traffic.SOURCE, "serve", "7000"])
    pod = Pod.run(daemon)
    client = pod.start(WEBAPP, SLEEP)
    six = []
    for each in (server, pod):
        (extra,) = daemon.client.pod_status(each.id).status.network.additional_ips
        assert ipaddress.ip_address(extra.ip) in subnet6
        six.append(extra.ip)
    outside.serve(7000)
    for kind in ("tcp", "udp"):
        told, _, said = reach(kind, six[0], 7000).partition(" ")
        # The guest writes an address in its own way.
        assert (ipaddress.ip_address(told), said) == (subnet6[1], "hello")
        assert talk(client, "probe", kind, six[0], "7000") == f"{six[1]} hello"
        assert talk(client, "probe", kind, outside.address6, "7000") == f"{outside.gateway6} hello"
    for gateway, address in (
        (outside.gateway, outside.address),
        (outside.gateway6, outside.address6),
    ):
        assert outside.probe("tcp", gateway, port) == f"{address} hello"
    # The addresses are the next daemon's too, and still nobody else's.
    daemon.kill()
    daemon.start()
    third = Pod.run(daemon)
    (extra,) = daemon.client.pod_status(third.id).status.network.additional_ips
    assert extra.ip not in six
    assert outside.probe("tcp", outside.gateway6, port) == f"{outside.address6} hello"
