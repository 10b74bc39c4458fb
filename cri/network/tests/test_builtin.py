"""The built-in network, with real traffic through real taps."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from cri.network import builtin
from cri.network.api import HostPort, NetworkConfig, PodIdentity
from cri.network.builtin import BuiltinNetwork
from cri.network.tests.conftest import Machine, in_netns, sh, trace
from hostlib import failpoint
from hostlib.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from hostlib.tasks import in_thread

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


class Server:
    """Answers each TCP connection inside a namespace with what it got."""

    def __init__(self, netns: Path | str, port: int, udp: bool = False) -> None:
        self.sockets: list[socket.socket] = []

        def listen() -> None:
            kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
            sock = socket.socket(socket.AF_INET, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("0.0.0.0", port))
            if not udp:
                sock.listen()
            self.sockets.append(sock)

        in_netns(netns, listen)
        self.thread = threading.Thread(target=self._udp if udp else self._serve, daemon=True)
        self.peers: list[str] = []
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, address = self.sockets[0].accept()
            except OSError:
                return
            self.peers.append(address[0])
            with peer:
                got = b""
                while chunk := peer.recv(65536):
                    got += chunk
                peer.sendall(got)

    def _udp(self) -> None:
        while True:
            data, address = self.sockets[0].recvfrom(65536)
            if data == b"stop":
                return
            self.sockets[0].sendto(data, address)

    def close(self) -> None:
        self.sockets[0].shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.sockets[0].close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(netns: Path | str, port: int) -> Server:
        made.append(Server(netns, port))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def echo(
    netns: Path | str, address: str, port: int, data: bytes = b"hello", timeout: float = 10
) -> bytes:
    """Send `data` from the namespace, and what comes back."""
    got = bytearray()

    def talk() -> None:
        with socket.create_connection((address, port), timeout=timeout) as sock:
            sender = threading.Thread(
                target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR))
            )
            sender.start()
            while chunk := sock.recv(65536):
                got.extend(chunk)
            sender.join()

    await in_thread(in_netns, netns, talk)
    return bytes(got)


HERE = "/proc/self/ns/net"


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
