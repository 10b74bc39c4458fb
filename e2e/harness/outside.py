"""A world outside: a network namespace behind the host that knows no way to the pods."""

from __future__ import annotations

import ipaddress
import json
import random
import secrets
import subprocess
import sys
from collections.abc import Mapping
from typing import Self

from e2e.harness import traffic
from e2e.harness.waiting import until
from hostlib.process import ENVIRONMENT


def sh(*argv: str) -> str:
    """A command's output; AssertionError with its stderr when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=dict(ENVIRONMENT))
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def subnet(length: int = 24) -> str:
    """An IPv4 subnet that nothing on this host uses; most likely nobody takes it meanwhile."""
    used = [
        ipaddress.IPv4Interface(f"{address['local']}/{address['prefixlen']}").network
        for link in json.loads(sh("ip", "-json", "-4", "address", "show"))
        for address in link["addr_info"]
    ]
    while True:
        chosen = ipaddress.IPv4Network((0x0A000000 | random.getrandbits(24), length), strict=False)
        if not any(chosen.overlaps(each) for each in used):
            return str(chosen)


class Outside:
    """A host on the other side of a veth, with subnets of its own; a context manager.

    It has no route but to its own link: an answer reaches a pod only if the pod's packets came
    with the address of `gateway`, the host's own end.
    """

    def __init__(self) -> None:
        token = secrets.token_hex(3)
        self.namespace = f"thawout{token}"
        self.link = f"thawo{token}"
        # RFC 2544's range for tests of networks, and a random unique local prefix.
        net = f"198.{random.choice((18, 19))}.{random.randrange(256)}"
        self.gateway, self.address = f"{net}.1", f"{net}.2"
        net6 = ipaddress.IPv6Network(f"fd{token[:2]}:{token[2:]}:{secrets.token_hex(2)}::/64")
        # As `ipaddress` writes them, and who answers: without leading zeros.
        self.gateway6, self.address6 = str(net6[1]), str(net6[2])
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        try:
            sh("ip", "netns", "add", self.namespace)
            peer = ("peer", "name", "eth0", "netns", self.namespace)
            sh("ip", "link", "add", self.link, "type", "veth", *peer)
            inside = ("ip", "-n", self.namespace)
            for command, link, v4, v6 in (
                (("ip",), self.link, self.gateway, self.gateway6),
                (inside, "eth0", self.address, self.address6),
            ):
                sh(*command, "address", "add", f"{v4}/24", "dev", link)
                sh(*command, "address", "add", f"{v6}/64", "dev", link, "nodad")
                sh(*command, "link", "set", link, "up")
            sh(*inside, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        # The veth pair goes with either end.
        for argv in (("link", "delete", self.link), ("netns", "delete", self.namespace)):
            subprocess.run(["ip", *argv], capture_output=True, check=False, env=dict(ENVIRONMENT))

    def _argv(self, *argv: str) -> list[str]:
        program = [sys.executable, "-I", "-c", traffic.SOURCE]
        # Not by `ip netns exec`, which holds on to all that others have mounted.
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *program, *argv]

    def _start(self, *argv: str) -> None:
        process = subprocess.Popen(
            self._argv(*argv), stdout=subprocess.PIPE, text=True, env=dict(ENVIRONMENT)
        )
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"

    def serve(self, port: int) -> None:
        """Run an echo server there, TCP and UDP."""
        self._start("serve", str(port))

    def names(self, table: Mapping[str, str]) -> None:
        """Run a DNS server there that knows these A records."""
        self._start("names", json.dumps(table))

    def probe(self, kind: str, address: str, port: int) -> str:
        """The answer that somebody there gets; AssertionError when there is none."""
        return sh(*self._argv("probe", kind, address, str(port))).strip()

    def reaches(self, kind: str, address: str, port: int) -> bool:
        """Whether somebody there gets an answer."""
        argv = self._argv("probe", kind, address, str(port))
        done = subprocess.run(argv, capture_output=True, check=False, env=dict(ENVIRONMENT))
        return done.returncode == 0


def reach(kind: str, address: str, port: int) -> str:
    """The answer that the host gets, once something listens there."""

    def ask() -> str | None:
        try:
            return traffic.probe(kind, address, port)
        except OSError:
            return None

    return until(f"{kind} {address}:{port} answers", ask)
