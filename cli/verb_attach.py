"""Join the terminal, or stdin, stdout and stderr, to a container's own process.

What it writes from now on is shown; what is typed goes to it, when it was made with stdin. In a
terminal Ctrl-P Ctrl-Q leaves and the container goes on; without one Ctrl-C does. When the container
ends, so does the command, with its exit code.
"""

from __future__ import annotations

import argparse
import sys
import time

from cli import interrupts, remote, show
from cli.client import Client
from cri.api import v1_pb2
from hostlib.errors import Unavailable

HELP = "join a running container's streams"

SETTLING = 5.0
"""Seconds for a container whose streams ended to be known as ended."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-stdin", action="store_true", help="watch only")
    remote.add_arguments(parser)
    parser.add_argument("container", help="its id, or the beginning of it")


def run(arguments: argparse.Namespace) -> int:
    with Client(arguments.address) as client:
        container = client.container_status(arguments.container).id
        config = client.container_config(container)
        streams = remote.Streams(
            stdin=bool(config.get("stdin")) and not arguments.no_stdin and sys.stdin is not None,
            terminal=bool(config.get("tty")),
            detachable=True,
        )
        url = client.attach(container, stdin=streams.stdin, terminal=streams.terminal)
        if interrupts.run(remote.join(url, streams, remote.tls(arguments))) is None:
            show.note("\ndetached; the container goes on")
            return 0
        return exit_code(client, container)


def exit_code(client: Client, container: str) -> int:
    """The exit code of a container whose streams have ended; `Unavailable` when it runs on."""
    deadline = time.monotonic() + SETTLING
    while True:
        status = client.container_status(container)
        if status.state == v1_pb2.CONTAINER_EXITED:
            return int(status.exit_code)
        if time.monotonic() > deadline:
            raise Unavailable(
                "the container's streams ended here, but it runs on",
                hint="who does not read what it writes is dropped: attach again",
            )
        time.sleep(0.02)
