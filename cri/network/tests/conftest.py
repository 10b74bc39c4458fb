"""Network namespaces for tests: a throw-away "host", VMs' namespaces, and guests behind a tap."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cri.network.api import Wire
from hostlib import failpoint, linux
from hostlib.tasks import in_thread

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000
_TUN_F_CSUM_TSO = 0x01 | 0x02 | 0x04


def in_netns(path: Path | str, work: Callable[[], object]) -> None:
    """Run `work` in a thread inside the namespace."""
    failed: list[BaseException] = []

    def body() -> None:
        try:
            with open(path) as source:
                linux.setns(source.fileno(), linux.CLONE_NEWNET)
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def make_netns(path: Path) -> Path:
    """A namespace pinned at `path`, as the shim makes it."""
    path.touch()

    def body() -> None:
        linux.unshare(linux.CLONE_NEWNET)
        linux.mount("/proc/thread-self/ns/net", str(path), flags=linux.MS_BIND)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return path


def open_tap(path: Path, name: str) -> int:
    """A tap with vnet_hdr and offloads, as QEMU uses it."""
    made: list[int] = []

    def body() -> None:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP_NO_PI_VNET_HDR))
        fcntl.ioctl(tap, _TUNSETVNETHDRSZ, struct.pack("i", 12))
        fcntl.ioctl(tap, _TUNSETOFFLOAD, _TUN_F_CSUM_TSO)
        made.append(tap)

    in_netns(path, body)
    return made[0]


def sh(*argv: str, netns: Path | None = None) -> str:
    """Run a command in the current namespace, or in `netns`."""
    enter = ("nsenter", f"--net={netns}") if netns else ()
    done = subprocess.run((*enter, *argv), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


class Machine:
    """A VM without QEMU: the namespace with ``tap0``, and a guest that is a second namespace with
    its own kernel stack, joined to the tap by a thread that copies frames both ways, headers and
    all, as virtio-net does."""

    def __init__(self, folder: Path, vm_id: str) -> None:
        self.id = vm_id
        self.netns = make_netns(folder / f"{vm_id}.vm")
        self.guest = make_netns(folder / f"{vm_id}.guest")
        self._taps = (open_tap(self.netns, "tap0"), open_tap(self.guest, "eth0"))
        self._stop = os.pipe()
        self._cable = threading.Thread(target=self._copy, daemon=True)
        self._cable.start()

    def _copy(self) -> None:
        other = dict(zip(self._taps, reversed(self._taps), strict=True))
        while True:
            ready, _, _ = select.select([*self._taps, self._stop[0]], [], [])
            if self._stop[0] in ready:
                return
            for tap in ready:
                with contextlib.suppress(OSError):
                    os.write(other[tap], os.read(tap, 1 << 17))

    def configure(self, guest: Wire) -> None:
        """What the guest agent does with its ``network`` object."""
        net = self.guest
        sh("ip", "link", "set", "lo", "up", netns=net)
        sh(
            "ip",
            "link",
            "set",
            "eth0",
            "address",
            guest["mac"],
            "mtu",
            str(guest["mtu"]),
            netns=net,
        )
        for address in guest["addresses"]:
            # As the agent does: else another address is taken while this one is looked for.
            flags = ["nodad"] if ":" in address else []
            sh("ip", "addr", "add", address, "dev", "eth0", *flags, netns=net)
        sh("ip", "link", "set", "eth0", "up", netns=net)
        for route in guest["routes"]:
            via = ("via", route["gateway"]) if "gateway" in route else ()
            sh("ip", "route", "add", route["dst"], *via, "dev", "eth0", netns=net)
        for entry in guest["neighbours"]:
            sh(
                "ip",
                "neigh",
                "replace",
                entry["ip"],
                "lladdr",
                entry["mac"],
                "dev",
                "eth0",
                netns=net,
            )

    def close(self) -> None:
        if self._stop[1] < 0:
            return
        os.write(self._stop[1], b"x")
        self._cable.join()
        for descriptor in (*self._taps, *self._stop):
            os.close(descriptor)
        self._stop = (-1, -1)
        for path in (self.netns, self.guest):
            linux.umount(str(path))
            path.unlink()


@pytest.fixture
def host() -> Iterator[None]:
    """The test's process lives in a network namespace of its own: the machine's stays untouched.

    Threads and commands that are started meanwhile inherit it.
    """
    with open("/proc/thread-self/ns/net") as before:
        linux.unshare(linux.CLONE_NEWNET)
        try:
            sh("ip", "link", "set", "lo", "up")
            yield
        finally:
            linux.setns(before.fileno(), linux.CLONE_NEWNET)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[[str], Machine]]:
    made: list[Machine] = []

    def make(vm_id: str) -> Machine:
        made.append(Machine(tmp_path, vm_id))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoint.disarm()


def trace() -> tuple[str, str]:
    """All that a network can leave on the host: links and rules."""
    names = sorted(
        line.split(":")[1].split("@")[0].strip() for line in sh("ip", "-o", "link").splitlines()
    )
    return " ".join(names), sh("nft", "list", "ruleset")


HERE = "/proc/self/ns/net"


class Server:
    """Answers each TCP connection inside a namespace, of either family, with what it got."""

    def __init__(self, netns: Path | str, port: int) -> None:
        self.sockets: list[socket.socket] = []

        def listen() -> None:
            sock = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
            self.sockets.append(sock)

        in_netns(netns, listen)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self.sockets[0].accept()
            except OSError:
                return
            with peer:
                got = b""
                while chunk := peer.recv(65536):
                    got += chunk
                peer.sendall(got)

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
    netns: Path | str, address: str, port: int, data: bytes = b"hello", timeout: float = 60
) -> bytes:
    """Send `data` from the namespace, and what comes back."""
    got = bytearray()

    def talk() -> None:
        with socket.create_connection((address, port), timeout=timeout) as sock:

            def send() -> None:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            while chunk := sock.recv(65536):
                got.extend(chunk)
            sender.join()

    await in_thread(in_netns, netns, talk)
    return bytes(got)
