"""Run a command of an image in a pod of its own.

Its output is shown as it comes and its exit code is passed on; pod and container are gone
afterwards, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli import logfile
from cli.client import Client
from cli.verb_logs import emit
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
    parser.add_argument("image")
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="instead of the image's command; its entrypoint stays",
    )


def run(arguments: argparse.Namespace) -> int:
    environment = [_variable(text) for text in arguments.env]
    container = v1_pb2.ContainerConfig(
        metadata=v1_pb2.ContainerMetadata(name="run"),
        image=v1_pb2.ImageSpec(image=arguments.image),
        args=arguments.command,
        working_dir=arguments.workdir,
        envs=environment,
        log_path="run.log",
    )
    with (
        Client(arguments.address) as client,
        tempfile.TemporaryDirectory(prefix="thaw-run-") as logs,
        _terminable(),
    ):
        if arguments.pull == "always" or client.image_status(arguments.image) is None:
            pull(client, arguments.image)
        name = f"run-{secrets.token_hex(4)}"
        pod = v1_pb2.PodSandboxConfig(
            metadata=v1_pb2.PodSandboxMetadata(name=name, namespace="default", uid=name),
            hostname=name,
            log_directory=logs,
        )
        return live(client, pod, container)


def _variable(text: str) -> v1_pb2.KeyValue:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidArgument(f"bad variable {text!r}", hint="write NAME=VALUE")
    return v1_pb2.KeyValue(key=name, value=value.encode())


def live(client: Client, pod: v1_pb2.PodSandboxConfig, container: v1_pb2.ContainerConfig) -> int:
    """A pod's whole life; the container's exit code."""
    pod_id = ""
    try:
        pod_id = client.run_pod(pod)
        container_id = client.create_container(pod_id, container, pod)
        client.start_container(container_id)

        def ended() -> bool:
            state = client.container_status(container_id).state
            return bool(state == v1_pb2.CONTAINER_EXITED)

        for line in logfile.follow(str(Path(pod.log_directory) / container.log_path), ended):
            emit(line)
        return int(client.container_status(container_id).exit_code)
    finally:
        for found in [pod_id] if pod_id else _named(client, pod.metadata.name):
            client.stop_pod(found)
            client.remove_pod(found)


def _named(client: Client, name: str) -> list[str]:
    """The pods of a name: what an interrupted RunPodSandbox may have made all the same."""
    return [pod.id for pod in client.pods() if pod.metadata.name == name]


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does, with everything removed."""

    def interrupt(_number: int, _frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt

    old = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
