"""Forward ports of this host to a pod's own localhost, until Ctrl-C.

Each port listens on 127.0.0.1 and, where there is IPv6, on ::1. LOCAL:REMOTE names both sides,
REMOTE alone is the same on both, :REMOTE takes a local port that is free.
"""

from __future__ import annotations

import argparse
import re
from typing import Final

from cli import forwarding, interrupts, remote
from cli.client import Client
from hostlib.errors import InvalidArgument

HELP = "forward local ports to a pod"

_PORTS: Final = re.compile(r"(?:([0-9]{0,5}):)?([0-9]{1,5})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    remote.add_arguments(parser)
    parser.add_argument("pod", help="its id, or the beginning of it")
    parser.add_argument("ports", nargs="+", metavar="[LOCAL:]REMOTE")


def run(arguments: argparse.Namespace) -> int:
    wanted = [parse(text) for text in arguments.ports]
    with Client(arguments.address) as client:
        url = client.port_forward(arguments.pod, sorted({port.remote for port in wanted}))
    interrupts.run(forwarding.forward(url, wanted, remote.tls(arguments)))
    return 0


def parse(text: str) -> forwarding.Port:
    """Raises `InvalidArgument`."""
    match = _PORTS.fullmatch(text)
    if match:
        port = int(match[2])
        local = port if match[1] is None else int(match[1] or 0)
        if 0 < port <= 0xFFFF and local <= 0xFFFF:
            return forwarding.Port(local, port)
    raise InvalidArgument(
        f"{text!r} is no pair of ports",
        hint="write 8080:80, 80, or :80 for a local port that is free",
    )
