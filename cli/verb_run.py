"""Run a command of an image in a pod of its own.

Its output is shown as it comes and its exit code is passed on; pod and container are gone
afterwards, also after Ctrl-C. With -i it gets what comes on stdin, to its end; with -t it runs in a
terminal; -it is what an interactive shell needs, and Ctrl-P Ctrl-Q leaves it running there. With
either there is no log.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli import interrupts, remote, show
from cli.client import Client
from cli.streaming import Tls
from cli.verb_attach import exit_code
from cli.verb_logs import follow
from cli.verb_pull import pull
from cri.api import v1_pb2
from hostlib.errors import InvalidArgument

HELP = "run a command of an image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable"
    )
    parser.add_argument("-w", "--workdir", default="", help="the working directory")
    parser.add_argument("--pull", choices=("missing", "always"), default="missing")
    parser.add_argument("-i", "--stdin", action="store_true", help="pass stdin on")
    parser.add_argument("-t", "--tty", action="store_true", help="run it in a terminal")
    remote.add_arguments(parser)
    parser.add_argument("image")
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="instead of the image's command; its entrypoint stays",
    )


def run(arguments: argparse.Namespace) -> int:
    environment = [_variable(text) for text in arguments.env]
    streams = remote.Streams(arguments.stdin, arguments.tty, detachable=True)
    joined = streams.stdin or streams.terminal
    container = v1_pb2.ContainerConfig(
        metadata=v1_pb2.ContainerMetadata(name="run"),
        image=v1_pb2.ImageSpec(image=arguments.image),
        args=arguments.command,
        working_dir=arguments.workdir,
        envs=environment,
        log_path="" if joined else "run.log",
        stdin=streams.stdin,
        # In a terminal the end is typed; whoever detaches does not mean it.
        stdin_once=streams.stdin and not streams.raw,
        tty=streams.terminal,
    )
    with (
        Client(arguments.address) as client,
        tempfile.TemporaryDirectory(prefix="thaw-run-") as logs,
        interrupts.handled(interrupts.interrupt),
    ):
        if arguments.pull == "always" or client.image_status(arguments.image) is None:
            pull(client, arguments.image, refresh=arguments.pull == "always")
        name = f"run-{secrets.token_hex(4)}"
        pod = v1_pb2.PodSandboxConfig(
            metadata=v1_pb2.PodSandboxMetadata(name=name, namespace="default", uid=name),
            hostname=name,
            log_directory=logs,
        )
        if joined:
            return live_joined(client, pod, container, streams, remote.tls(arguments))
        return live(client, pod, container)


def _variable(text: str) -> v1_pb2.KeyValue:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidArgument(f"bad variable {text!r}", hint="write NAME=VALUE")
    return v1_pb2.KeyValue(key=name, value=value.encode())


def live(client: Client, pod: v1_pb2.PodSandboxConfig, container: v1_pb2.ContainerConfig) -> int:
    """A pod's whole life; the container's exit code."""
    with _pod(client, pod) as made:
        container_id = client.create_container(made.id, container, pod)
        with remote.starting():
            client.start_container(container_id)
        follow(client, container_id, str(Path(pod.log_directory) / container.log_path))
        return int(client.container_status(container_id).exit_code)


def live_joined(
    client: Client,
    pod: v1_pb2.PodSandboxConfig,
    container: v1_pb2.ContainerConfig,
    streams: remote.Streams,
    tls: Tls,
) -> int:
    """The same, joined to our own streams; a user who detaches leaves the pod."""
    with _pod(client, pod) as made:
        container_id = client.create_container(made.id, container, pod)
        # A container's streams can be joined before it starts: so nothing that it says is missed.
        url = client.attach(container_id, stdin=streams.stdin, terminal=streams.terminal)

        async def start() -> None:
            with remote.starting():
                await asyncio.to_thread(client.start_container, container_id)

        if interrupts.run(remote.join(url, streams, tls, start)) is not None:
            return exit_code(client, container_id)
        made.keep = True
    show.note(
        f"\ndetached; `thaw attach {show.short(container_id)}` goes back, "
        f"`thaw rm {show.short(made.id)}` ends it"
    )
    return 0


@dataclass
class _Made:
    id: str
    keep: bool = False


@contextmanager
def _pod(client: Client, config: v1_pb2.PodSandboxConfig) -> Iterator[_Made]:
    """A pod, which is removed in the end unless it is to be kept."""
    made = _Made("")
    try:
        made.id = client.run_pod(config)
        yield made
    finally:
        for found in [made.id] if made.id else _named(client, config.metadata.name):
            if not made.keep:
                client.stop_pod(found)
                client.remove_pod(found)


def _named(client: Client, name: str) -> list[str]:
    """The pods of a name: what an interrupted RunPodSandbox may have made all the same."""
    return [pod.id for pod in client.pods() if pod.metadata.name == name]
